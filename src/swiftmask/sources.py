"""From a file or a folder to a model: every family is asked whether it is its own.

A folder is one that `save_pretrained` wrote (config.json names the family), one in the released layout of a
family, or holds loose released files, which their keys and shapes tell.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from swiftmask.core.families import Family, Reading, WeightsFile
from swiftmask.core.protocol import MaskedGenerator
from swiftmask.core.reading import State, read_shapes, some
from swiftmask.core.settings import about
from swiftmask.core.writing import files_below
from swiftmask.registry import family_of, model_names, read_config, weights_files

RELEASED_SUFFIXES = (".pth", ".pt", ".ckpt", ".safetensors")
_MOST_FILES, _MOST_WEIGHTS = 20_000, 200
"""In the folder of one model, among them its images."""


@dataclass(frozen=True, slots=True)
class Loose:
    """A loose weights file, and what it is.

    Attributes:
        owner: the model or method folder that knows it.
    """

    path: Path
    owner: str
    kind: WeightsFile


def identify(path: Path) -> Loose:
    """What a weights file is, by its keys and shapes.

    Errors: FileNotFoundError; ValueError for a damaged file, and for one that nobody knows.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such weights file: {path}")
    if path.suffix not in (*RELEASED_SUFFIXES, ".bin"):
        raise ValueError(
            f"{path} is no weights file ({', '.join(RELEASED_SUFFIXES)}): "
            "for a converted model give the folder it is in"
        )
    state = read_shapes(path)
    known = _known(path, state)
    if known is None:
        raise ValueError(f"{path} is of no model that is known here: it has {some(list(state))}; {layouts()}")
    return known


def read_model(source: Path, reading: Reading) -> MaskedGenerator:
    """The model in a file or a folder.

    Errors: FileNotFoundError or ValueError saying what was found, what was expected, and what to do.
    """
    return _read_file(identify(source), reading) if source.is_file() else _read_folder(source, reading)


def family_at(source: Path) -> Family:
    """The family of the model in a file or a folder, without its weights. Errors: as `read_model`."""
    if source.is_file():
        return family_of(identify(source).owner)
    config = read_config(source) if (source / "config.json").is_file() else {}
    if "model" in config:
        with about(str(source / "config.json")):
            return family_of(str(config["model"]))
    if "method" in config:
        raise ValueError(f"{source} holds a {config['method']}: pass it to accelerate(model, ...)")
    released = (family_of(name) for name in model_names())
    found = next((family for family in released if family.is_released_folder(source)), None)
    return found or family_of(_only_model(source, list(_loose_files(source))).owner)


def layouts() -> str:
    """What a model looks like on disk, for the end of a complaint."""
    released = "; ".join(family_of(name).layout for name in model_names())
    return f"expected config.json with model.safetensors (a converted model), or as released: {released}"


def _read_folder(folder: Path, reading: Reading) -> MaskedGenerator:
    config = read_config(folder) if (folder / "config.json").exists() else {}
    if "model" in config:
        name = str(config["model"])
        with about(str(folder / "config.json")):
            family = family_of(name)
        _check_options(reading, family.own_options, f"a converted {name}")
        return family.read_own(folder, reading)
    if "method" in config:
        raise ValueError(f"{folder} holds a {config['method']}: pass it to accelerate(model, ...)")
    for name in model_names():
        family = family_of(name)
        if family.is_released_folder(folder):
            _check_options(reading, family.options, name)
            return family.read_released(folder, reading)
    found = list(_loose_files(folder))
    model = _only_model(folder, found)
    codecs = [loose.path for loose in found if (loose.owner, loose.kind.role) == (model.owner, "codec")]
    if len(codecs) > 1 and reading.codec is None:
        raise ValueError(f"{folder} holds several codecs: give one of {', '.join(map(str, codecs))} as codec")
    return _read_file(model, reading if reading.codec or not codecs else replace(reading, codec=codecs[0]))


def _read_file(model: Loose, reading: Reading) -> MaskedGenerator:
    if model.kind.role != "model":
        raise ValueError(f"{model.path} is {model.kind.what}, no whole model: {model.kind.use}")
    family = family_of(model.owner)
    _check_options(reading, family.options, model.owner)
    if reading.codec is None:
        raise ValueError(
            f"{model.path} is {model.kind.what} and holds no tokenizer: {model.kind.use} (--codec FILE)"
        )
    codec = identify(reading.codec)
    if (codec.owner, codec.kind.role) != (model.owner, "codec"):
        wanted = next(kind.what for kind in weights_files()[model.owner] if kind.role == "codec")
        raise ValueError(f"the codec {codec.path} is {codec.kind.what}: expected {wanted}")
    return family.read_released(model.path, reading)


def _check_options(reading: Reading, options: frozenset[str], what: str) -> None:
    """Errors: ValueError for an option that reading this model has no use for."""
    foreign = sorted(reading.given() - options)
    if foreign:
        takers = [name for name in model_names() if foreign[0] in family_of(name).options]
        raise ValueError(
            f"{foreign[0]} is for a released {' or '.join(takers)}, not for {what}: leave it out"
        )


def _known(path: Path, state: State) -> Loose | None:
    for owner, kinds in weights_files().items():
        for kind in kinds:
            if kind.holds(state):
                return Loose(path, owner, kind)
    return None


def _loose_files(folder: Path) -> Iterator[Loose]:
    """What is known of the weights files in a folder and up to three folders below.

    Errors: ValueError for a damaged file, or too many files to be a model's folder.
    """
    paths: list[Path] = []
    for number, path in enumerate(files_below(folder), 1):
        if path.suffix in RELEASED_SUFFIXES and path.is_file():
            paths.append(path)
        if number > _MOST_FILES or len(paths) > _MOST_WEIGHTS:
            most = f"{_MOST_FILES:,} files" if number > _MOST_FILES else f"{_MOST_WEIGHTS} weights files"
            raise ValueError(f"{folder} holds more than {most}: give the folder of one model")
    for path in sorted(paths):
        known = _known(path, read_shapes(path))
        if known is not None:
            yield known


def _only_model(folder: Path, found: Sequence[Loose]) -> Loose:
    """The one model among loose files."""
    models = [loose for loose in found if loose.kind.role == "model"]
    if len(models) == 1:
        return models[0]
    if models:
        names = " or ".join(str(loose.path) for loose in models)
        raise ValueError(f"{folder} holds several models: load {names} with its codec")
    if found:
        part = found[0]
        raise ValueError(
            f"{folder} holds no whole model: {part.path.name} is {part.kind.what}; {part.kind.use}"
        )
    raise FileNotFoundError(f"{folder} holds no model: {layouts()}")
