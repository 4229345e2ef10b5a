"""What a server can generate with: a base model, and every way to make it cheaper that was asked for.

All of them share the base's weights; weights that Speed-RL tuned are another copy. A request chooses by
name: the base's own (`maskgit-scenes`), with parts behind it (`maskgit-scenes+shortcut`,
`mar-scenes+marval+reuse`), or a preset (`maskgit-scenes+preset:fast`). All are loaded when the server starts.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock

from swiftmask.api import accelerate
from swiftmask.core.settings import first_line
from swiftmask.evaluate.fingerprints import weights_fingerprint
from swiftmask.evaluate.presets import Settings, read_preset
from swiftmask.methods.shortcut import ShortcutFeatures
from swiftmask.pipeline import Pipeline
from swiftmask.presets import apply_preset, apply_settings
from swiftmask.registry import suggestion
from swiftmask.serve.errors import RequestError

_MOST_SIZES = 8
"""Pipelines of other sizes that are kept; the one unused for longest goes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerators:
    """Names, folders or files of what is loaded beside the base, as `accelerate` takes them."""

    shortcut: Sequence[str] = ()
    caching: Sequence[str] = ()
    marval: Sequence[str] = ()
    speed_rl: Sequence[str] = ()
    presets: Sequence[Path] = ()


@dataclass(frozen=True, slots=True)
class Variant:
    """One name a request can choose, and what generates then.

    Attributes:
        full: the base at the same size, whose cost an answer tells beside its own.
        size: height and width of its images in pixels.
        settings: what leads from the base to the pipeline.
        fingerprint: of the weights of model and accelerator.
    """

    name: str
    pipeline: Pipeline
    full: Pipeline
    size: tuple[int, int]
    settings: Settings
    fingerprint: str

    @property
    def accelerators(self) -> dict[str, str]:
        """Names of what it has, without the folders they are in."""
        given = {name: getattr(self.settings, name) for name in ("speed_rl", "marval", "shortcut", "caching")}
        return {name: Path(source).name for name, source in given.items() if source not in (None, "none")}


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The variants of one base model, by name; the first is the base itself."""

    base: Pipeline
    variants: dict[str, Variant]
    _sized: OrderedDict[tuple[str, tuple[int, int]], Variant] = field(default_factory=OrderedDict)
    _lock: Lock = field(default_factory=Lock)

    @classmethod
    def of(cls, base: Pipeline, accelerators: Accelerators) -> "Catalogue":
        """Load everything. Errors: ValueError or FileNotFoundError naming what does not go with the base."""
        variants: dict[str, Variant] = {}
        for parts, settings in _combinations(accelerators):
            name = "+".join((base.name, *parts))
            variants[name] = _variant(name, base, apply_settings(base, settings), settings)
        for path in accelerators.presets:
            name = f"{base.name}+preset:{path.stem}"
            if name in variants:
                raise ValueError(f"two presets are called {path.stem}: rename one of the files")
            settings = read_preset(path).settings
            variants[name] = _variant(name, base, apply_preset(base, path), settings)
        return cls(base, variants)

    def find(self, name: str | None, preset: str | None, size: tuple[int, int] | None) -> Variant:
        """The variant that a request names.

        Args:
            name: of the base where None.
            preset: name of a preset, in place of a name.
            size: height and width; the model's own where None.

        Errors: RequestError.
        """
        if preset is not None:
            name = f"{self.base.name}+preset:{preset}"
        name = self.base.name if name is None else name
        variant = self.variants.get(name)
        if variant is None:
            param, shown = ("model", name) if preset is None else ("preset", preset)
            hint = suggestion(name, self.variants)
            raise RequestError(
                f"unknown {param} {shown[:80]!r}{hint} (GET /v1/models lists what is loaded)",
                status=404,
                param=param,
                code="model_not_found",
            )
        if size is None or size == variant.size:
            return variant
        return self._of_size(variant, size)

    def _of_size(self, variant: Variant, size: tuple[int, int]) -> Variant:
        key = (variant.name, size)
        with self._lock:
            if key in self._sized:
                self._sized.move_to_end(key)
                return self._sized[key]
        try:
            sized = _sized(self.base, variant, size)
        except ValueError as error:
            raise RequestError(first_line(error), param="size") from error
        with self._lock:
            self._sized[key] = sized
            if len(self._sized) > _MOST_SIZES:
                self._sized.popitem(last=False)
        return sized


def _combinations(accelerators: Accelerators) -> Iterator[tuple[tuple[str, ...], Settings]]:
    """Names of parts, and the settings they mean: weights, a head, and a way to save backbone calls."""
    tuned = _named("speed-rl", accelerators.speed_rl)
    heads = _named("marval", accelerators.marval)
    savers: list[tuple[tuple[str, ...], Settings]] = [
        (part, Settings(shortcut=source)) for part, source in _named("shortcut", accelerators.shortcut)
    ]
    savers += [((name,), Settings(caching=name)) for name in accelerators.caching]
    for tuned_part, speed_rl in [((), None), *tuned]:
        for head_part, marval in [((), None), *heads]:
            for saver_part, saver in [((), Settings()), *savers]:
                parts = (*tuned_part, *head_part, *saver_part)
                yield parts, replace(saver, speed_rl=speed_rl, marval=marval)


def _named(method: str, sources: Sequence[str]) -> list[tuple[tuple[str, ...], str]]:
    """One of its kind is called by the method; several carry the names of their folders.

    Errors: ValueError for two of one name.
    """
    if len(sources) == 1:
        return [((method,), sources[0])]
    named = {f"{method}:{Path(source).name}": source for source in sources}
    if len(named) < len(sources):
        raise ValueError(f"two of the {method} sources have the same name: rename one of the folders")
    return [((name,), source) for name, source in named.items()]


def _variant(name: str, base: Pipeline, pipeline: Pipeline, settings: Settings) -> Variant:
    fingerprint = weights_fingerprint(pipeline.model, pipeline.features_fn)
    full = base if settings.size is None else base.sized(*settings.size)
    return Variant(name, pipeline, full, pipeline.image_size(), settings, fingerprint)


def _sized(base: Pipeline, variant: Variant, size: tuple[int, int]) -> Variant:
    """The variant generating other sizes, around the same weights.

    Errors: ValueError for a size the model has not, or an accelerator that knows one size alone.
    """
    own = variant.pipeline
    plain = replace(own, features_fn=None, full_steps=None, full_steps_by_default=False, _flops={})
    pipeline = plain.sized(*size)
    if own.features_fn is not None:
        network = own.features_fn.shortcut if isinstance(own.features_fn, ShortcutFeatures) else None
        pipeline = accelerate(
            pipeline,
            shortcut=network,
            caching=variant.settings.caching if network is None else None,
            full_steps=own.full_steps,
        )
        pipeline = replace(pipeline, full_steps_by_default=own.full_steps_by_default)
    return replace(variant, pipeline=pipeline, full=base.sized(*size), size=size)
