"""`swiftmask nearest`: the training image that each generated one is nearest to."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from swiftmask.cli import measure
from swiftmask.cli.loading import device_text
from swiftmask.cli.progress import counted, note, progress_bar
from swiftmask.core.settings import parse_json

if TYPE_CHECKING:
    from torch import Tensor

    from swiftmask.data.sources import Source
    from swiftmask.evaluate.extractors import Extractor
    from swiftmask.evaluate.feature_store import FeatureStore
    from swiftmask.evaluate.image_sets import ImageSet
    from swiftmask.evaluate.nearest import Nearest

_DIGITS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class NearestImages:
    """Which training image each generated image is nearest to: does the model copy, and what does it compose?

    Writes OUT/nearest-EXTRACTOR.png (generated images above their nearest training images) and prints shares:
    copies, and where the reference has columns, whether the nearest image has the asked value of each. The
    line of held-out images is the same of real ones.
    """

    images: Positional[Path]
    """Folder of generated images, all of one size; `swiftmask generate` notes in each what was asked for."""
    reference: str
    """The training data: a folder, or hub:OWNER/NAME. Its held-out images count as not trained on."""
    extractor: tuple[str, ...] = ("efficientnet-lite0",)
    """Whose features, any number: efficientnet-lite0, a reader's folder, a TorchScript file, a Hugging Face
    folder, or scenes."""
    prompts: Path | None = None
    """File of the prompts, .jsonl or .csv with columns that say what each is to show (default: captions of
    the reference)."""
    classes: tuple[str, ...] = ()
    """Columns whose values make the names of a model's classes, as in concept style."""
    columns: tuple[str, ...] = ()
    """Columns of the reference that are compared (default: those of --classes, else all)."""
    held_out: float = 0.0
    """Share of the reference that was not trained on, where it has no splits of its own."""
    shown: int = 16
    """Images on the sheet."""
    batch_size: int = 64
    """Images at a time."""
    device: str = "auto"
    """Where to run: cpu, cuda, mps, or auto (cuda where there is a GPU, else cpu)."""
    out: Path = Path("report/nearest")
    """Folder of the sheets and of the features, which later runs use again."""
    json: bool = False
    """Print JSON instead of a table."""

    def run(self) -> int:
        """Describe what is not described yet, compare, draw, print."""
        from swiftmask.api import device_named
        from swiftmask.data.sources import DataConfig, held_out, open_source
        from swiftmask.evaluate.extractors import load_extractor
        from swiftmask.evaluate.image_sets import folder_images, source_images

        source = open_source(self.reference, DataConfig(classes=self.classes))
        columns = self._columns(source)
        device = device_named(self.device)
        extractors = [load_extractor(name, device) for name in self.extractor]
        generated = folder_images(self.images)
        real = source_images(source, generated.images([0]).shape[-1])
        out_X = held_out(source, self.held_out)
        if out_X.all():
            raise ValueError(f"all images of {source.name} are held out: lower --held-out")
        asked = self._asked(source, columns)
        note(f"features on {device_text(device)}")
        tables = {}
        for extractor in extractors:
            ours, theirs = (
                self._described(pictures, extractor, what)
                for pictures, what in ((generated, self.images.resolve().name), (real, source.name))
            )
            tables[extractor.identity.name] = self._compared(
                ours, theirs, out_X, asked, columns, generated, real, extractor.identity.name
            )
        self._print(tables)
        return 0

    def _columns(self, source: "Source") -> dict[str, tuple[str, ...]]:
        """Errors: ValueError for a column that is not there."""
        names = self.columns or self.classes or tuple(source.column_names)
        return {name: tuple(source.column(name)) for name in names}

    def _asked(
        self, source: "Source", columns: Mapping[str, tuple[str, ...]]
    ) -> list[Mapping[str, str] | None]:
        """What each generated image was to show, by the note in it; None where nothing says it."""
        from swiftmask.cli.output_folder import stamp_of
        from swiftmask.data.images.listing import Listing
        from swiftmask.data.prompts import read_prompts
        from swiftmask.data.sources import asked_of_captions
        from swiftmask.evaluate.image_sets import OVERVIEW

        known: dict[str, Mapping[str, str]] = dict(asked_of_captions(source))
        if source.classes is not None and self.classes:
            for place, label in enumerate(source.classes.labels_X.tolist()):
                known[source.classes.names[label]] = {name: columns[name][place] for name in columns}
        if self.prompts is not None:
            known |= {prompt.text: prompt.columns for prompt in read_prompts(self.prompts)}
        root = self.images.expanduser()
        asked = []
        for file in Listing.below(root, but=(OVERVIEW,)).files:
            stamp = stamp_of(root / file)
            what = parse_json(stamp, source=str(root / file)).get("what") if stamp else None
            asked.append(known.get(str(what)))
        if not any(asked):
            note(f"nothing says what the images in {self.images} were to show: copies alone are counted")
        return asked

    def _described(self, pictures: "ImageSet", extractor: "Extractor", what: str) -> "FeatureStore":
        from swiftmask.evaluate.feature_store import describe

        own = f"{what}-{pictures.fingerprint[:_DIGITS]}-{extractor.identity.sha256[:_DIGITS]}"
        with progress_bar() as bar:
            return describe(
                pictures,
                extractor,
                self.out / "features" / own,
                batch_size=self.batch_size,
                on_progress=counted(bar, what),
            )

    def _compared(
        self,
        ours: "FeatureStore",
        theirs: "FeatureStore",
        out_X: "Tensor",
        asked: list[Mapping[str, str] | None],
        columns: Mapping[str, tuple[str, ...]],
        generated: "ImageSet",
        real: "ImageSet",
        name: str,
    ) -> dict[str, Any]:
        """Rows of a table: generated images, and held-out ones as their like. Draws the sheet."""
        from swiftmask.core.writing import write_bytes
        from swiftmask.evaluate.nearest import copy_bound, memorised, nearest_of

        features_ND = theirs.readings()["features"]
        trained_N, tested_M = (~out_X).nonzero()[:, 0], out_X.nonzero()[:, 0]
        trained_ND, tested_MD = features_ND[trained_N], features_ND[tested_M]
        bound = copy_bound(trained_ND, tested_MD)
        trained = {key: [values[i] for i in trained_N.tolist()] for key, values in columns.items()}
        found = nearest_of(ours.readings()["features"], trained_ND)
        rows = {"generated": asdict(memorised(found, bound, asked, trained))}
        if len(tested_M):
            theirs_asked = [{key: columns[key][i] for key in columns} for i in tested_M.tolist()]
            unseen = nearest_of(tested_MD, trained_ND)
            rows["held-out images"] = asdict(memorised(unseen, bound, theirs_asked, trained))
        sheet = self.out / f"nearest-{name}.png"
        write_bytes(sheet, self._sheet(found, trained_N, generated, real))
        return {"copies_from": bound, "sheet": str(sheet), "rows": rows}

    def _sheet(self, found: "Nearest", trained_N: "Tensor", generated: "ImageSet", real: "ImageSet") -> bytes:
        """Generated images, spread over all, above the training images that are nearest to them."""
        import torch

        from swiftmask.evaluate.sheets import side_by_side

        count = min(self.shown, generated.count)
        places = [index * generated.count // count for index in range(count)]
        nearest = trained_N[found.places_X[places]].tolist()
        theirs = torch.cat([real.images([place]) for place in nearest])
        return side_by_side([generated.images(places), theirs])

    def _print(self, tables: dict[str, Any]) -> None:
        if self.json:
            origin = measure.origin(self.images.name, measure.command_of("nearest", self))
            measure.print_json(asdict(origin) | {"reference": self.reference, "extractors": tables})
            return
        for name, table in tables.items():
            kinds = list(dict.fromkeys(text for row in table["rows"].values() for text in row["shares"]))
            cells = [
                (
                    what,
                    str(row["count"]),
                    f"{row['similarity']:.3f}",
                    f"{row['copies']:.3f}",
                    *(f"{row['shares'].get(text, 0.0):.3f}" if row["known"] else "" for text in kinds),
                )
                for what, row in table["rows"].items()
            ]
            headings = ["images", "N", "similarity", "copies", *kinds]
            measure.print_table(f"nearest training image ({name})", headings, cells)
            print(f"copies: more similar than {table['copies_from']:.3f}; {table['sheet']}")
