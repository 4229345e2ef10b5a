"""`swiftmask compare`: distribution metrics (FID and kin) of a folder of pictures."""

import platform
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import Progress
from tyro.conf import Positional

from swiftmask.cli import measure
from swiftmask.cli.asked import require_reference
from swiftmask.cli.loading import device_text, own_device
from swiftmask.cli.progress import counted, note, progress_bar

if TYPE_CHECKING:
    from swiftmask.data.images import Decoding
    from swiftmask.evaluate.extractors import Extractor, Identity
    from swiftmask.evaluate.feature_store import FeatureStore
    from swiftmask.evaluate.folder_metrics import FolderMetrics
    from swiftmask.evaluate.image_sets import ImageSet
    from swiftmask.evaluate.processes import Processes
    from swiftmask.evaluate.statistics import Moments

_PACKAGES = ("swiftmask", "torch", "numpy", "pillow", "transformers")
"""What decides the numbers."""

_DIGITS = 12
"""Of a hash, where a person reads it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compare:
    """How far a folder of images is from real ones: FID and kin, each beside its floor (docs/metrics.md).

    A killed run continues where it was. torchrun --nproc-per-node N -m swiftmask compare ... shares the work.
    """

    images: Positional[Path]
    """Folder of generated images, all of one size."""
    reference: Path
    """Folder of real images, or a file of their statistics: .safetensors (--save-statistics), or .npz with
    mu and sigma."""
    extractor: str
    """Whose features: efficientnet-lite0 (a Python package), a reader (its folder, or emoji-judge), scenes
    (the bundled judge of Scenes), a TorchScript file, or a Hugging Face folder."""
    crop: int | None = None
    """Crop real images to squares of this side, as ADM does (default: take them as they are)."""
    background: str = "white"
    """Colour behind transparent images: a name, or #rrggbb."""
    ignore_orientation: bool = False
    """Leave images as stored instead of turning them as EXIF says; ADM's statistics were made so."""
    nearest: int = 3
    """Neighbour that bounds a neighbourhood (precision, recall, density, coverage)."""
    splits: int = 10
    """Of the Inception Score."""
    batch_size: int = 64
    """Images at a time."""
    device: str = "auto"
    """Where to run: cpu, cuda (of several processes, each takes its own GPU), mps, or auto (cuda where there
    is a GPU, else cpu)."""
    out: Path = Path("report/features")
    """Folder of the features, which later runs use again."""
    save_statistics: Path | None = None
    """Also keep the statistics of the real images in this .safetensors file, as a later --reference."""
    json: bool = False
    """Print JSON instead of a table."""

    def run(self) -> int:
        """Describe what is not described yet, compare, print."""
        self._check_options()
        from swiftmask.evaluate.extractors import load_extractor
        from swiftmask.evaluate.image_sets import folder_images
        from swiftmask.evaluate.processes import Processes

        processes = Processes.here()
        generated = folder_images(self.images, self._decoding())
        reference = self._reference(generated)
        if processes.rank == 0:
            for line in (*generated.said, *_said_of(reference)):
                note(line)
        device = own_device(processes, self.device)
        extractor = load_extractor(self.extractor, device)
        try:
            ours, real = self._described(generated, reference, extractor, processes)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("the same command continues where it was") from None
        processes.wait()
        if processes.rank == 0:
            note(f"features on {device_text(device)}")
            self._save_statistics(real)
            self._say_changes(ours, real)
            self._print(self._compared(ours, real), _changes_of(ours), _changes_of(real))
        return 0

    def _decoding(self) -> "Decoding":
        from swiftmask.data.images import Decoding

        return Decoding(background=self.background, orientation=not self.ignore_orientation)

    def _say_changes(self, ours: "FeatureStore", real: "FeatureStore | Moments") -> None:
        from swiftmask.data.images.decode import said

        for folder, store in ((self.images, ours), (self.reference, real)):
            for line in said(_changes_of(store), store.count or 0, self._decoding()):
                note(f"{folder}: {line}")

    def _check_options(self) -> None:
        """Errors: ValueError or FileNotFoundError for what is wrong before any image is read."""
        self._decoding()  # complains about a background that is no colour
        reference = self.reference.expanduser()
        require_reference(reference)
        for flag, value in (("--crop", self.crop), ("--save-statistics", self.save_statistics)):
            if value is not None and not reference.is_dir():
                raise ValueError(f"{flag} goes with a folder of real images, and {reference} is a file")
        if self.save_statistics is not None and self.save_statistics.suffix != ".safetensors":
            raise ValueError(f"--save-statistics {self.save_statistics}: name a .safetensors file")

    def _reference(self, generated: "ImageSet") -> "ImageSet | Moments":
        from swiftmask.evaluate.image_sets import folder_images
        from swiftmask.evaluate.statistics import read_moments

        path = self.reference.expanduser()
        if not path.is_dir():
            return read_moments(path)
        real = folder_images(path, self._decoding(), crop=self.crop)
        self._check_numbers(generated, real)
        _check_sizes(generated, real)
        return real

    def _check_numbers(self, generated: "ImageSet", real: "ImageSet") -> None:
        """Said before hours of work rather than after them."""
        from swiftmask.evaluate.folder_metrics import MetricSettings, fewest_images

        fewest = fewest_images(MetricSettings(nearest=self.nearest, splits=self.splits))
        for folder, found in ((self.images, generated.count), (self.reference, real.count)):
            if found < fewest:
                raise ValueError(
                    f"--nearest {self.nearest} and --splits {self.splits} need at least {fewest} images on "
                    f"either side, and {folder} has {found}: give more, or lower the options"
                )

    def _described(
        self,
        generated: "ImageSet",
        reference: "ImageSet | Moments",
        extractor: "Extractor",
        processes: "Processes",
    ) -> "tuple[FeatureStore, FeatureStore | Moments]":
        """This process's share of what is missing; complete when all processes have done theirs."""
        from swiftmask.evaluate.extractors import require_same_features
        from swiftmask.evaluate.feature_store import describe
        from swiftmask.evaluate.statistics import Moments

        def store(pictures: "ImageSet", folder: Path, what: str, bar: Progress) -> "FeatureStore":
            return describe(
                pictures,
                extractor,
                self._features_folder(pictures, folder, extractor.identity),
                batch_size=self.batch_size,
                rank=processes.rank,
                num_ranks=processes.count,
                on_progress=counted(bar, what),
            )

        if isinstance(reference, Moments):
            require_same_features(reference, extractor, generated.images([0]), source=self.reference)
        with progress_bar(shown=processes.rank == 0) as bar:
            ours = store(generated, self.images, "pictures", bar)
            if isinstance(reference, Moments):
                return ours, reference
            return ours, store(reference, self.reference, "reference", bar)

    def _features_folder(self, pictures: "ImageSet", source: Path, identity: "Identity") -> Path:
        """Named by what it holds: changed images never meet old features, and every comparison with a
        reference uses the same ones.
        """
        own = f"{source.expanduser().resolve().name}-{pictures.fingerprint[:_DIGITS]}"
        return self.out / f"{identity.name}-{identity.sha256[:_DIGITS]}" / own

    def _save_statistics(self, real: "FeatureStore | Moments") -> None:
        from swiftmask.evaluate.feature_store import FeatureStore

        if self.save_statistics is None:
            return
        assert isinstance(real, FeatureStore)
        real.statistics().save(
            self.save_statistics.expanduser(),
            extractor=real.identity.sha256,
            decoding=self._decoding().identity,
        )

    def _compared(self, ours: "FeatureStore", real: "FeatureStore | Moments") -> "FolderMetrics":
        from swiftmask.evaluate.folder_metrics import MetricSettings, compare_sets

        with progress_bar() as bar:
            bar.add_task("metrics", total=None)
            return compare_sets(ours, real, MetricSettings(nearest=self.nearest, splits=self.splits))

    def _print(self, result: "FolderMetrics", ours: dict[str, int], real: dict[str, int]) -> None:
        from swiftmask.recipes.provenance import commit, machine

        origin = {
            "command": measure.command_of("compare", self),
            "commit": commit(),
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "machine": machine(),
        }
        if self.json:
            compared = {"folder": str(self.images), "reference": str(self.reference)}
            read = {"decoding": self._decoding().identity, "converted": {"folder": ours, "reference": real}}
            measure.print_json(compared | asdict(result) | read | origin | {"versions": _versions()})
        else:
            _print_table(result, origin)


def _said_of(reference: "ImageSet | Moments") -> tuple[str, ...]:
    """What is to be said of a folder of real images; of statistics, nothing."""
    return getattr(reference, "said", ())


def _changes_of(described: "FeatureStore | Moments") -> dict[str, int]:
    from swiftmask.evaluate.statistics import Moments

    return {} if isinstance(described, Moments) else described.changes()


def _check_sizes(generated: "ImageSet", real: "ImageSet") -> None:
    """Extractors take any size, so nothing else would notice."""
    ours, theirs = (pictures.images([0]).shape[-2:] for pictures in (generated, real))
    if ours != theirs:
        raise ValueError(
            f"the images are {ours[1]}x{ours[0]}, the real ones {theirs[1]}x{theirs[0]}: metrics need one "
            "size; --crop SIDE crops the real ones to squares"
        )


def _versions() -> dict[str, str]:
    """Of Python and what decides the numbers, as far as installed."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def _print_table(result: "FolderMetrics", origin: dict[str, str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("metric", box=box.SIMPLE_HEAD)
    for heading in ("value", "spread", "floor"):
        table.add_column(heading, justify="right")
    for metric in result.metrics:
        numbers = (metric.value, metric.spread, metric.floor)
        table.add_row(metric.name, *("" if number is None else f"{number:.5g}" for number in numbers))
    console = Console()
    console.print(table)
    for line in (*_caption(result), "{commit}, {date}, {machine}".format(**origin), origin["command"]):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _caption(result: "FolderMetrics") -> list[str]:
    """What a reader must know beside the table."""
    known = result.reference_pictures
    floor = "no floor, which needs enough images of the reference"
    if result.floor_pictures and known is not None:
        floor = f"floor: {result.floor_pictures} real ones against the other {known - result.floor_pictures}"
    lines = [
        f"N = {result.pictures} images against {'an unknown number' if known is None else known}; {floor}",
        f"extractor {result.extractor.name}, sha256 {result.extractor.sha256[:_DIGITS]}",
    ]
    if result.left_out:
        lines.append(f"not given by this reference or extractor: {', '.join(result.left_out)}")
    return lines
