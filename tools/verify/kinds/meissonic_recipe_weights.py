"""Meissonic with weights and inputs that are not stored but follow from formulas, and two decodes of its
scheduler with draws from a seeded generator.

Entries "downsample=...,t=..." give statistics and some values of the logits, rounded to six places; entries
"scheduler_N=..." the canvas after every step.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from swiftmask.core.files import load_strict
from swiftmask.core.schedule import meissonic_schedule
from swiftmask.models.meissonic.network import Transformer, TransformerConfig
from swiftmask.models.meissonic.rotary import places_of, rotary_at
from verify.cases import Case, Check, compare, exactly
from verify.kinds.meissonic_scheduler import decide

_BATCH, _SIDE, _NUM_TEXT = 2, 8, 7
_MASK_ID, _CODES, _GRID = 8255, 16, (4, 4)
_CHOICE_TEMPERATURE, _SEED = 2.0, 0


def check(case: Case) -> list[Check]:
    checks = []
    networks = {downsample: network(downsample=downsample) for downsample in (True, False)}
    for name, entry in case.config.items():
        if found := re.fullmatch(r"downsample=(True|False),t=(\d+)", name):
            logits_BKHW = _logits(networks[found[1] == "True"], float(found[2]))
            checks += _of_logits(name, logits_BKHW, entry)
        elif found := re.fullmatch(r"scheduler_N=(\d+)", name):
            checks += _of_scheduler(name, int(found[1]), entry)
        else:
            checks.append(Check(name, None, 0.0, False, "nothing here computes this entry"))
    return checks


def network(*, downsample: bool) -> Transformer:
    """One double and two single blocks with the recipe's weights."""
    sizes = TransformerConfig(
        num_heads=2,
        head_width=128,
        num_double_blocks=1,
        num_single_blocks=2,
        text_width=64,
        codebook_size=256,
        vocabulary_size=300,
        rotary_axes=(16, 56, 56),
        downsample=downsample,
    )
    with torch.device("meta"):
        transformer = Transformer(sizes)
    shapes = {name: value.shape for name, value in transformer.named_parameters()}
    state = {name: _weight(place, name, shapes[name]) for place, name in enumerate(sorted(shapes))}
    load_strict(transformer, state, source="the recipe")
    return transformer.eval()


def _weight(place: int, name: str, shape: Sequence[int]) -> Tensor:
    index = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    values = torch.sin(1 + 0.7 * place + 1.3 * index + 0.0007 * index**2).view(*shape)
    if len(shape) > 1:
        return (0.05 * values).float()
    return (0.1 * values + (1.0 if name.endswith(".weight") else 0.0)).float()


def _logits(transformer: Transformer, timestep: float) -> Tensor:
    sizes = transformer.config
    b, y, x = torch.meshgrid(*(torch.arange(n) for n in (_BATCH, _SIDE, _SIDE)), indexing="ij")
    ids_BHW = (7 * b + 13 * y + 29 * x + 3 * y * x) % sizes.vocabulary_size
    rows = torch.arange(_BATCH, dtype=torch.float64)
    place_T1 = 0.9 * torch.arange(_NUM_TEXT, dtype=torch.float64)[:, None]
    states_BTC = (place_T1 + 1.7 * torch.arange(sizes.text_width) + rows[:, None, None]).sin().float()
    pooled_BD = (1.1 * torch.arange(sizes.width, dtype=torch.float64) + rows[:, None]).cos().float()
    micro_B5 = torch.tensor([[1024.0, 1024.0, 0.0, 0.0, 6.0]] * _BATCH)
    grid = (_SIDE // sizes.stride, _SIDE // sizes.stride)
    features_BLD = transformer(
        ids_BHW,
        transformer.condition(states_BTC, pooled_BD, micro_B5),
        torch.tensor([timestep]),
        rotary_at(places_of(grid, _NUM_TEXT), sizes.rotary_axes),
    )
    return transformer.logits(features_BLD).transpose(1, 2).unflatten(2, (_SIDE, _SIDE))


def _of_logits(name: str, logits_BKHW: Tensor, entry: Mapping[str, Any]) -> list[Check]:
    ours = {
        "moments": torch.stack([logits_BKHW.mean(), logits_BKHW.std()]),
        "absmax": logits_BKHW.abs().max(),
        "values": torch.cat(
            [logits_BKHW[0, :4, 0, 0], logits_BKHW[1, 100:104, 3, 5], logits_BKHW[1, -4:, 7, 7]]
        ),
        "lse00": logits_BKHW[0, :, 0, 0].logsumexp(0),
    }
    theirs = {
        "moments": torch.tensor([entry["mean"], entry["std"]]),
        "absmax": torch.tensor(entry["absmax"]),
        "values": torch.tensor([*entry["first"], *entry["mid"], *entry["last"]]),
        "lse00": torch.tensor(entry["lse00"]),
    }
    prefixed = ({f"{name} {key}": value for key, value in part.items()} for part in (ours, theirs))
    return [exactly(f"{name} shape", logits_BKHW.shape, entry["shape"]), *compare(*prefixed)]


def _of_scheduler(name: str, num_steps: int, entry: Sequence[Sequence[Sequence[int]]]) -> list[Check]:
    """The same logits at every step, each of which draws a token and confidence noise for every position."""
    num_tokens = _GRID[0] * _GRID[1]
    index = torch.arange(_BATCH * _CODES * num_tokens, dtype=torch.float64)
    logits_BVL = (3 * torch.sin(0.37 * index + 0.001 * index**2)).float().view(_BATCH, _CODES, num_tokens)
    logits_BLV = logits_BVL.transpose(1, 2)
    generator = torch.Generator().manual_seed(_SEED)
    canvas_BL = torch.full((_BATCH, num_tokens), _MASK_ID)
    checks = []
    for step in meissonic_schedule(num_tokens, num_steps, choice_temperature=_CHOICE_TEMPERATURE):
        probs_XV = logits_BLV.softmax(-1).flatten(0, 1)
        sampled_BL = torch.multinomial(probs_XV, 1, generator=generator).view(_BATCH, num_tokens)
        uniform_BL = torch.rand(_BATCH, num_tokens, generator=generator)
        canvas_BL = decide(step, _MASK_ID, canvas_BL, logits_BLV, sampled_BL, uniform_BL)
        checks.append(
            exactly(
                f"{name} step {step.index}",
                canvas_BL.flatten().tolist(),
                torch.tensor(entry[step.index]).flatten().tolist(),
            )
        )
    return checks
