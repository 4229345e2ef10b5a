"""Presets on pipelines: what `swiftmask.apply_preset` and `generate --preset` do with what `tune` wrote.

The file and its contents are evaluate/presets.py's; here the settings meet a model and its accelerators.
"""

from dataclasses import replace
from pathlib import Path

from swiftmask.api import accelerate
from swiftmask.evaluate.fingerprints import weights_fingerprint
from swiftmask.evaluate.presets import Preset, Settings, read_preset
from swiftmask.pipeline import Pipeline


def apply_settings(pipeline: Pipeline, settings: Settings) -> Pipeline:
    """The pipeline generating as `settings` say, with the accelerators they name.

    Errors: ValueError for full steps without a shortcut or caching, a size the model has not, and those of
    `accelerate`.
    """
    cached = settings.shortcut is not None or settings.caching is not None
    if settings.full_steps is not None and not cached:
        raise ValueError("full steps go with a shortcut or caching: without one every step is full")
    if settings.speed_rl is not None:
        pipeline = accelerate(pipeline, speed_rl=settings.speed_rl)
    if settings.size is not None:
        pipeline = pipeline.sized(*settings.size)
    if settings.marval is not None:
        pipeline = accelerate(pipeline, marval=settings.marval)
    sampling = settings.sampling.over(pipeline.sampling)
    steps = pipeline.steps if settings.steps is None else settings.steps
    pipeline = replace(pipeline, sampling=sampling, steps=steps, _flops={})
    if not cached:
        return pipeline
    return accelerate(
        pipeline, shortcut=settings.shortcut, caching=settings.caching, full_steps=settings.full_steps
    )


def apply_preset(
    pipeline: Pipeline, preset: Preset | str | Path, *, beside: Settings | None = None
) -> Pipeline:
    """The pipeline as `swiftmask tune` found it best; `pipeline` itself is left as it is.

    Args:
        pipeline: as `load` gives it, in float32 or bfloat16.
        preset: or the file that it lies in.
        beside: settings that override the preset's.

    Errors: FileNotFoundError; ValueError if the preset is another model's, its accelerator was trained anew
    since, or what stands beside it does not go with it.
    """
    preset = preset if isinstance(preset, Preset) else read_preset(preset)
    if pipeline.features_fn is not None:
        raise ValueError(f"{pipeline.name} is accelerated already: apply a preset to what load(...) gives")
    fingerprint = weights_fingerprint(pipeline.model)
    if fingerprint != preset.fingerprint:
        raise ValueError(
            f"the preset is for {preset.model} (weights {preset.fingerprint}), but this is {pipeline.name} "
            f"(weights {fingerprint}): run `swiftmask tune` on it"
        )
    settings = preset.settings if beside is None else beside.over(preset.settings)
    applied = apply_settings(pipeline, settings)
    measured = settings.same_accelerators(preset.settings)
    if measured and weights_fingerprint(applied.model, applied.features_fn) != preset.accelerated_fingerprint:
        raise ValueError(
            f"the accelerator of the preset for {preset.model} has other weights or settings now than when "
            "it was measured: run `swiftmask tune` again"
        )
    return applied
