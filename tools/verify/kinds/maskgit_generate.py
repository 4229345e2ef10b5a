"""Whole MaskGIT decodes, full and with the shortcut, token for token from the recorded draws.

The weights are those of sibling cases in the same folder, named under `base`.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from swiftmask.core.decode import FullFeatures, decode, prepare_condition
from swiftmask.core.protocol import FeatureFn, MaskedGenerator
from swiftmask.core.rng import ReplayNoise
from swiftmask.core.schedule import uniform_full_steps, valeo_schedule, with_full_steps
from swiftmask.core.types import Schedule
from swiftmask.core.unmask import by_confidence
from swiftmask.methods.shortcut import ShortcutFeatures
from swiftmask.models.maskgit import MaskGIT
from swiftmask.models.maskgit.codec import VQGAN, VQGANConfig
from verify.cases import Case, Check, compare, read_case, sibling_names
from verify.kinds import maskgit_shortcut, maskgit_transformer
from verify.kinds.maskgit_schedules import CURVES


def check(case: Case) -> list[Check]:
    runs = case.config["runs"]
    model = _model(case)
    outputs = {f"{name}.ids": _ids(case, model, name, settings) for name, settings in runs.items()}
    expected = case.group("out")
    shaped = {
        key: value.reshape(expected[key].shape) if key in expected else value
        for key, value in outputs.items()
    }
    return compare(shaped, expected)


def _ids(case: Case, model: MaskedGenerator, run: str, settings: Mapping[str, Any]) -> Tensor:
    draws = case.group(f"in.{run}.uniform")
    noise = ReplayNoise([draws[key] for key in sorted(draws, key=lambda key: int(key.split(".")[0]))])
    schedule, features_fn = _plan(case, model, settings)
    labels = case.group(f"in.{run}").get("labels", case.tensors.get("in.labels"))
    if labels is None:
        raise ValueError(f"{case.name}: in.labels is missing")
    canvas = model.blank(len(labels))
    return decode(
        model,
        prepare_condition(model, model.encode(labels.tolist()), schedule),
        schedule,
        noise,
        canvas=canvas,
        features_fn=features_fn,
        unmask=by_confidence,
    ).tokens_BL


def _plan(case: Case, model: MaskedGenerator, settings: Mapping[str, Any]) -> tuple[Schedule, FeatureFn]:
    """A run's own settings win over the file's; the reference's `guidance` is ours less one."""
    told = {**case.config, **settings}
    num_steps = told["step"]
    schedule = valeo_schedule(
        model.spec.num_tokens,
        num_steps,
        curve=CURVES[told.get("schedule", "arccos")],
        guidance=1 + told["guidance"],
        temperature=1 / told["softmax_temperature"],
        choice_temperature=told["gumbel_temperature"],
    )
    if not told["use_shortcut"]:
        return schedule, FullFeatures(model)
    shortcut = maskgit_shortcut.build(_sibling(case, "maskgit_shortcut"))
    schedule = with_full_steps(schedule, uniform_full_steps(num_steps, told["budget"]))
    return schedule, ShortcutFeatures(model, shortcut)


def _model(case: Case) -> MaskedGenerator:
    """The base with a codec that is never run."""
    holds_weights = "hidden_dim" in case.config and "state.tok_emb.weight" in case.tensors
    transformer = maskgit_transformer.build(case if holds_weights else _sibling(case, "maskgit_transformer"))
    sizes = transformer.config
    with torch.device("meta"):
        codec = VQGANConfig(
            ch=32,
            ch_mult=(1,),
            num_res_blocks=1,
            attn_resolutions=(),
            resolution=sizes.grid,
            z_channels=32,
            n_embed=sizes.codebook_size,
            embed_dim=32,
        )
        return cast(MaskedGenerator, MaskGIT(transformer, VQGAN(codec)))


def _sibling(case: Case, kind: str) -> Case:
    """The first sibling that is there and has this case's grid and codebook."""
    shapes = [tensor.shape for key, tensor in case.tensors.items() if key.endswith(".token")]
    names, complaints = sibling_names(case, kind), []
    for name in names:
        if not (case.folder / f"{name}.json").exists():
            complaints.append(f"{name}.json is missing")
            continue
        found = read_case(case.folder, name)
        grid, codes = found.config.get("grid"), found.config.get("codebook_size")
        if grid is None or not shapes or (grid**2, codes) == tuple(shapes[0][1:]):
            return found
        complaints.append(
            f"{name} has a grid of {grid} and {codes} codes, this decode needs {tuple(shapes[0][1:])}"
        )
    raise FileNotFoundError(f"{case.name} needs the weights of {names[0]}: {'; '.join(complaints)}")
