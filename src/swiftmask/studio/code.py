"""The command and the lines of Python that generate what the page's accelerated model generated."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

from swiftmask.evaluate.presets import Settings
from swiftmask.serve.catalogue import Catalogue
from swiftmask.studio.session import PRESET, Knobs, explicit_knobs

START, MASK = "start.png", "mask.png"
"""Files that the page offers beside code that starts from an image."""

_METHODS = ("speed_rl", "marval", "shortcut", "caching")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """How the base model was loaded.

    Attributes:
        model: as the command line was given it.
        options: of `load`, where they are not its defaults.
        presets: files by the name that variants give them.
    """

    model: str
    options: Mapping[str, str] = field(default_factory=dict)
    presets: Mapping[str, str] = field(default_factory=dict)


def command_of(knobs: Knobs, catalogue: Catalogue, source: Source) -> str:
    """`swiftmask generate` with the same settings; its images have the same pixels and settings."""
    knobs = explicit_knobs(knobs, catalogue)
    words = ["swiftmask", "generate", source.model, *knobs.what]
    if knobs.negative_prompt:
        words += ["--negative-prompt", knobs.negative_prompt]
    words += ["--seed", str(knobs.seed), *(["--num", str(knobs.num_images)] * (knobs.num_images > 1))]
    preset = _preset_of(knobs, source)
    if preset is not None:
        words += ["--preset", preset]
    else:
        settings = _settings_of(knobs, catalogue)
        for method in _METHODS:
            if (weights := getattr(settings, method)) is not None:
                words += [f"--{method.replace('_', '-')}", weights]
    words += _option("--steps", knobs.steps) + _option("--full-steps", knobs.full_steps)
    for name, value in knobs.sampling.items():
        words += _option(f"--{name.replace('_', '-')}", value)
    if knobs.size is not None:
        width, height = knobs.size.split("x")
        words += ["--size", height, width]
    if knobs.image is not None:
        words += ["--init-image", START] + ([] if knobs.mask is None else ["--mask", MASK])
    for name, value in source.options.items():
        words += [f"--{name.replace('_', '-')}", value]
    return shlex.join(words)


def python_of(knobs: Knobs, catalogue: Catalogue, source: Source) -> str:
    """The same in Python."""
    knobs = explicit_knobs(knobs, catalogue)
    loaded = "".join(f", {name}={value!r}" for name, value in source.options.items())
    lines = ["import swiftmask"]
    if knobs.image is not None:
        lines.append("from PIL import Image")
    options = {name: value for name, value in knobs.sampling.items() if name != "guidance"}
    if options:
        lines.append("from swiftmask.core.protocol import SamplingOptions")
    lines += ["", f"model = swiftmask.load({source.model!r}{loaded})"]
    lines += _accelerated(knobs, catalogue, source)
    given = [f"seeds={[knobs.seed + place for _ in knobs.what for place in range(knobs.num_images)]}"]
    given += [] if knobs.steps is None else [f"steps={knobs.steps}"]
    given += [] if knobs.guidance is None else [f"guidance={knobs.guidance:g}"]
    if knobs.negative_prompt:
        given.append(f"negative_prompt={knobs.negative_prompt!r}")
    if options:
        given.append(f"sampling=SamplingOptions({_arguments(options)})")
    if knobs.size is not None:
        width, height = knobs.size.split("x")
        given.append(f"size=({height}, {width})")
    if knobs.image is not None:
        mask = "" if knobs.mask is None else f", Image.open({MASK!r})"
        lines.append(f"start = fast.start(Image.open({START!r}){mask})")
        given.append("start=start")
    what = [each for each in knobs.what for _ in range(knobs.num_images)]
    asked = f"{what!r}" if catalogue.base.model.spec.draws == "class" else f"prompts={what!r}"
    lines += [
        f"result = fast.generate({asked}, {', '.join(given)})",
        "for image, seed in zip(result.images, result.seeds):",
        '    image.save(f"image-{seed}.png")' if len(knobs.what) == 1 else "    image.show()",
        "print(result.cost.calls, result.cost.flops / 1e9)  # calls per image by part; GFLOP per image",
    ]
    return "\n".join(lines) + "\n"


def _accelerated(knobs: Knobs, catalogue: Catalogue, source: Source) -> list[str]:
    preset = _preset_of(knobs, source)
    if preset is not None:
        beside = ""
        if knobs.full_steps is not None:
            beside = f", beside=Settings(steps={knobs.steps}, full_steps={knobs.full_steps})"
        imported = ["from swiftmask.evaluate.presets import Settings"] if beside else []
        return [*imported, f"fast = swiftmask.apply_preset(model, {preset!r}{beside})"]
    settings = _settings_of(knobs, catalogue)
    chosen = {m: getattr(settings, m) for m in _METHODS if getattr(settings, m) is not None}
    lines, name = [], "model"
    for place, (method, weights) in enumerate(chosen.items()):
        last = place == len(chosen) - 1
        full = f", full_steps={knobs.full_steps}" if last and knobs.full_steps is not None else ""
        lines.append(f"fast = swiftmask.accelerate({name}, {method}={weights!r}{full})")
        name = "fast"
    return lines or ["fast = model"]


def _settings_of(knobs: Knobs, catalogue: Catalogue) -> Settings:
    return catalogue.find(knobs.variant, None, None).settings


def _preset_of(knobs: Knobs, source: Source) -> str | None:
    """The file of the preset that a variant is, if it is one."""
    _, found, name = knobs.variant.partition(PRESET)
    return source.presets[name] if found else None


def _option(name: str, value: float | None) -> list[str]:
    return [] if value is None else [name, f"{value:g}"]


def _arguments(options: Mapping[str, float]) -> str:
    return ", ".join(f"{name}={value:g}" for name, value in options.items())
