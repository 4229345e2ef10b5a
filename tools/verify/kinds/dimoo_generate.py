"""Whole Lumina-DiMOO decodes, full, with the shortcut and with ML-Cache, token for token from recorded draws.

The weights are those of sibling cases in the same folder. How many tokens are masked at each step is read off
the draws: on a canvas this small the recorded sampler lets a step decide nothing, which ours never does.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from swiftmask.core.decode import FullFeatures, decode, prepare_condition
from swiftmask.core.protocol import FeatureFn
from swiftmask.core.rng import ReplayNoise
from swiftmask.core.schedule import uniform_full_steps, with_full_steps
from swiftmask.core.types import Step
from swiftmask.core.vq_codec import VQCodec, VQConfig
from swiftmask.methods.caching import MLCacheFeatures, ml_cache_full_steps
from swiftmask.methods.shortcut import ShortcutFeatures
from swiftmask.models.lumina_dimoo import LuminaDiMOO
from swiftmask.models.lumina_dimoo.layout import Vocabulary
from swiftmask.models.lumina_dimoo.prompts import PromptSettings
from verify.cases import Case, Check, compare, exactly, read_case, sibling_names
from verify.kinds import dimoo_llada, dimoo_shortcut


@dataclass(frozen=True, slots=True)
class _RecordedPrompts:
    """Stands for a tokenizer: one prompt, already in ids."""

    prompt: tuple[int, ...]
    null_ids: tuple[int, ...]

    def ids(self, text: str) -> list[int]:
        return list(self.prompt)

    def settings(self) -> PromptSettings:
        raise ValueError("a recorded prompt is no tokenizer")

    def save(self, folder: Path) -> None:
        raise ValueError("a recorded prompt is no tokenizer")


@dataclass(frozen=True, slots=True)
class _MaskedReplay:
    """Recorded draws cover the masked positions alone, in ascending order, as they are asked for."""

    replay: ReplayNoise

    def categorical(self, probs_BMV: Tensor, positions_BM: Tensor) -> Tensor:
        return self.replay.categorical(probs_BMV, _ranks(positions_BM))

    def gumbel(self, positions_BM: Tensor) -> Tensor:
        return self.replay.gumbel(_ranks(positions_BM))

    def gumbel_per_code(self, positions_BM: Tensor, num_codes: int) -> Tensor:
        return self.replay.gumbel_per_code(_ranks(positions_BM), num_codes)

    def permutation(self, num_tokens: int) -> Tensor:
        return self.replay.permutation(num_tokens)

    def normal(self, positions_BM: Tensor, channels: int) -> Tensor:
        return self.replay.normal(_ranks(positions_BM), channels)


def check(case: Case) -> list[Check]:
    model, checks, outputs = _model(case), [], {}
    for run, settings in case.config["runs"].items():
        told = {**case.config, **settings}
        draws = _draws(case, run)
        counts = [draw.shape[1] for draw in draws if draw.ndim == 3]
        checks.append(_schedule_check(run, model.spec.num_tokens, counts, told["timesteps"]))
        codes_1L = _decode(case, model, told, draws, counts)
        outputs[f"{run}.ids"] = codes_1L + told["image_token_offset"]
    return checks + compare(outputs, case.group("out"))


def _decode(
    case: Case, model: LuminaDiMOO, told: Mapping[str, Any], draws: Sequence[Tensor], counts: Sequence[int]
) -> Tensor:
    schedule = [
        Step(
            index=i,
            num_masked_before=before,
            num_masked_after=after,
            guidance=1 + told["cfg_scale"],
            temperature=told["temperature"],
            choice_temperature=told["temperature"],
        )
        for i, (before, after) in enumerate(zip(counts, [*counts[1:], 0], strict=True))
    ]
    features_fn, full = _plan(case, model, told)
    schedule = with_full_steps(schedule, [i for i in full if i < len(schedule)])
    canvas, noise = model.blank(1), _MaskedReplay(ReplayNoise(draws))
    return decode(
        model,
        prepare_condition(model, model.encode([""]), schedule),
        schedule,
        noise,
        canvas=canvas,
        features_fn=features_fn,
        unmask=model.unmask_rule(canvas, noise),
    ).tokens_BL


def _plan(case: Case, model: LuminaDiMOO, told: Mapping[str, Any]) -> tuple[FeatureFn, list[int]]:
    """The run's feature function and full steps."""
    num_steps = told["timesteps"]
    if told.get("use_shortcut"):
        shortcut = dimoo_shortcut.build(_sibling(case, "dimoo_shortcut"))
        return ShortcutFeatures(model, shortcut), uniform_full_steps(num_steps, told["budget"])
    if "cache_ratio" in told:
        full = ml_cache_full_steps(
            num_steps, warmup_ratio=told["warmup_ratio"], refresh_interval=told["refresh_interval"]
        )
        return MLCacheFeatures(model, cache_ratio=told["cache_ratio"]), full
    return FullFeatures(model), list(range(num_steps))


def _schedule_check(run: str, num_tokens: int, counts: Sequence[int], num_steps: int) -> Check:
    """The recorded counts against `max(1, floor(n cos))` in float32.

    Where that leaves nothing to decide, a recorded sampler decides nothing or one token.
    """
    ratios = torch.arange(1, num_steps, dtype=torch.float32) / num_steps
    ours = [num_tokens]
    wanted = (num_tokens * torch.cos(ratios * math.pi / 2)).floor().clamp(min=1).int().tolist()
    for left, before, after in zip(wanted, counts, counts[1:], strict=False):
        idle = left >= before and after in (before, before - 1)
        ours.append(after if idle else left)
    return exactly(f"{run} masked tokens", ours, counts)


def _draws(case: Case, run: str) -> list[Tensor]:
    draws = case.group(f"in.{run}.uniform")
    return [draws[key] for key in sorted(draws, key=int)]


def _model(case: Case) -> LuminaDiMOO:
    """The sibling backbone with this case's vocabulary, canvas and prompts."""
    sizes, given = case.config, case.group("in")
    backbone = dimoo_llada.build(_sibling(case, "dimoo_llada"))
    ids, start, side = given["prompt"][0].tolist(), sizes["code_start"], sizes["side"]
    vocabulary = Vocabulary(
        mask=sizes["mask_token_id"],
        newline=sizes["newline_id"],
        answer_start=ids[start - 2],
        image_start=ids[start - 1],
        image_end=ids[-2],
        answer_end=ids[-1],
        first_code=sizes["image_token_offset"],
        codebook_size=sizes["codebook_size"],
    )
    null_ids = tuple(given["uncond_prefix"][0].tolist())
    model = LuminaDiMOO(
        backbone,
        _no_codec(sizes["codebook_size"]),
        _RecordedPrompts(tuple(ids[: start - 2]), null_ids),
        vocabulary=vocabulary,
        grid=(side, side),
    )
    blank = model.blank(1)
    ours = model.layout.sequence(model.encode([""]).prompts_XP, blank.tokens_BL, blank.masked_BL)
    if ours[0].tolist() != ids:
        raise ValueError(f"{case.name}: in.prompt is not laid out as a {side}x{side} image after a prompt")
    return model


def _no_codec(codebook_size: int) -> VQCodec:
    """One that holds nothing: token decodes do not run it."""
    config = VQConfig(
        block_out_channels=(1,),
        layers_per_block=1,
        latent_channels=1,
        num_vq_embeddings=codebook_size,
        norm_num_groups=1,
    )
    return VQCodec(config, nn.Module())


def _sibling(case: Case, kind: str) -> Case:
    """The first sibling that is there."""
    names = sibling_names(case, kind)
    found = next((name for name in names if (case.folder / f"{name}.json").exists()), None)
    if found is None:
        raise FileNotFoundError(f"{case.name} needs the weights of {names[0]}: {names[0]}.json is missing")
    return read_case(case.folder, found)


def _ranks(positions_BM: Tensor) -> Tensor:
    return torch.arange(positions_BM.shape[1]).expand_as(positions_BM)
