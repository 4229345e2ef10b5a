"""What there is: model and method folders, recipes, and bundled weights, found by name.

A folder under `models/` or `methods/`, a module under `recipes/` and a folder under `weights/` is all it
takes to be known here. Nothing is imported to answer what exists, so listing costs no torch.
"""

import ast
import difflib
import math
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from swiftmask.core.settings import about, parse_json, read_json

if TYPE_CHECKING:
    from swiftmask.core.families import Family, WeightsFile

_PACKAGE = Path(__file__).parent
WEIGHTS = _PACKAGE / "weights"
Kind = Literal["model", "method", "reader", "tokenizer"]


@dataclass(frozen=True, slots=True)
class Weights:
    """A weights folder as its files describe it.

    Attributes:
        kind: a base "model", a "method" that accelerates one, a "reader" of images, or a "tokenizer" of them.
        family: the model or method folder that reads it; a reader's network; "vq" or "kl".
        num_parameters: elements of every tensor on disk.
        num_bytes: size of the folder on disk.
        measured: quality written beside the weights when they were trained; empty if none was.
        draws: "class" or "prompt" for a model; for a method, the name of its base model.
        num_classes: of a class-conditional model.
        size: height and width of its images in pixels, if the configuration tells.
        steps: decode steps, if it tells.
    """

    name: str
    folder: Path
    kind: Kind
    family: str
    num_parameters: int
    num_bytes: int
    measured: dict[str, object]
    draws: str | None = None
    num_classes: int | None = None
    size: tuple[int, int] | None = None
    steps: int | None = None


def model_names() -> list[str]:
    return _folders("models")


def method_names() -> list[str]:
    return _folders("methods")


def recipe_names() -> list[str]:
    """Modules of `recipes/` that define `recipe()`, with dashes for underscores."""
    folder = _PACKAGE / "recipes"
    modules = (module.name for module in iter_modules([str(folder)]) if not module.ispkg)
    return sorted(n.replace("_", "-") for n in modules if "\ndef recipe(" in (folder / f"{n}.py").read_text())


def recipe_purpose(name: str) -> str:
    """The first sentence about a recipe, without its name; read from the file, which is not imported."""
    text = ast.get_docstring(ast.parse((_PACKAGE / "recipes" / f"{name.replace('-', '_')}.py").read_text()))
    first = " ".join((text or "").split("\n\n")[0].split()).removeprefix(f"{name}: ")
    return re.split(r"(?<=\))\.? |\. ", first)[0].rstrip(".")


def bundled_names(kind: Kind | None = None) -> list[str]:
    """Weights shipped with the package, of one kind or of all."""
    folders = (path.parent for path in WEIGHTS.glob("*/config.json"))
    return sorted(folder.name for folder in folders if kind in (None, _kind(read_config(folder))[0]))


def bundled_folder(name: str) -> Path:
    """Errors: ValueError naming the nearest bundled names."""
    if name not in bundled_names():
        raise ValueError(f"no bundled weights {name!r}{suggestion(name, bundled_names())}")
    return WEIGHTS / name


def family_of(name: str) -> "Family":
    """How a model folder's models are found and read. Errors: ValueError for an unknown family."""
    _require(name, model_names(), "model family")
    return import_module(f"swiftmask.models.{name}").FAMILY


def trainable(family: str) -> Any:
    """How a family is trained (core/trainable.py). Errors: ValueError for an unknown family."""
    _require(family, model_names(), "model family")
    return import_module(f"swiftmask.models.{family}.training").TRAINABLE


def weights_files() -> "dict[str, tuple[WeightsFile, ...]]":
    """The kinds of published weights files, by the model or method folder that knows them."""
    packages = [("models", name) for name in model_names()] + [("methods", name) for name in method_names()]
    modules = {name: import_module(f"swiftmask.{package}.{name}") for package, name in packages}
    return {name: getattr(module, "WEIGHTS_FILES", ()) for name, module in modules.items()}


def recipe_module(name: str) -> ModuleType:
    """A recipe's module, by the recipe's name or from a user's own Python file.

    Errors: FileNotFoundError; ValueError for an unknown recipe, or a file without `recipe()`.
    """
    if name.endswith(".py"):
        return _own_module(Path(name).expanduser())
    _require(name, recipe_names(), "recipe")
    return import_module(f"swiftmask.recipes.{name.replace('-', '_')}")


def _own_module(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"no such recipe file: {path}")
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's file raises
        raise ValueError(f"{path} does not import ({type(error).__name__}: {error})") from error
    if not callable(getattr(module, "recipe", None)):
        raise ValueError(f"{path} must define recipe(), which returns a recipe (docs/train_your_own.md)")
    return module


def describe(folder: Path, name: str | None = None) -> Weights:
    """Read a weights folder's own description. Errors: FileNotFoundError; ValueError for a damaged folder."""
    config = read_config(folder)
    with about(str(folder / "config.json")):
        kind, family = _kind(config)
    provenance = read_json(folder / "provenance.json") if (folder / "provenance.json").exists() else {}
    measured = provenance.get("measured") or provenance.get("held_out_accuracy") or {}
    return Weights(
        name=name or folder.name,
        folder=folder,
        kind=kind,
        family=family,
        num_parameters=sum(_num_parameters(path) for path in folder.glob("*.safetensors")),
        num_bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        measured=measured if isinstance(measured, dict) else {"measured": measured},
        draws=_draws(config),
        num_classes=_num_classes(config),
        size=_size(config),
        steps=config.get("steps"),
    )


def weights_name(path: Path) -> str:
    """What the weights of a folder are called: as the folder, or as the run that left `RUN/model`."""
    path = path.resolve()
    return path.parent.name if path.name in ("model", "policy") else path.name


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a weights folder. Errors: FileNotFoundError; ValueError if it is no JSON object."""
    return read_json(
        folder / "config.json", expected="expected a model folder, see `swiftmask convert --help`"
    )


def suggestion(name: str, known: Iterable[str]) -> str:
    """ ": did you mean ...?", or what there is."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return f": did you mean {' or '.join(near)}?"
    return f": there is {', '.join(known)}" if known else ": there are none"


def _require(name: str, known: list[str], what: str) -> None:
    if name not in known:
        raise ValueError(f"unknown {what} {name!r}{suggestion(name, known)}")


def _folders(package: str) -> list[str]:
    return sorted(module.name for module in iter_modules([str(_PACKAGE / package)]) if module.ispkg)


def _kind(config: dict[str, Any]) -> tuple[Kind, str]:
    if "model" in config:
        return "model", str(config["model"])
    if "method" in config:
        return "method", str(config["method"])
    if "network" in config:
        return "reader", str(config["network"])
    if "tokenizer" in config:
        return "tokenizer", str(config["tokenizer"])
    raise ValueError(
        "it names no model, method, network or tokenizer: expected the config.json of a folder of ours"
    )


def _draws(config: dict[str, Any]) -> str | None:
    """What a model is asked for, or which model a method is for."""
    if "model" in config:
        return "prompt" if _num_classes(config) is None else "class"
    return config.get("base_model", {}).get("name")


def _num_classes(config: dict[str, Any]) -> int | None:
    networks = (config.get(part, {}) for part in ("transformer", "network"))
    return next((network["num_classes"] for network in networks if "num_classes" in network), None)


def _size(config: dict[str, Any]) -> tuple[int, int] | None:
    """Of a model's images: as written, as the codec writes them, or the token grid at the codec's scale."""
    codec = config.get("codec", {})
    if "size" in config:
        return tuple(config["size"])
    if side := config.get("resolution") or codec.get("image_size") or codec.get("resolution"):
        return side, side
    grid = config.get("grid") or [config.get("transformer", {}).get("grid")] * 2
    if "block_out_channels" in codec and grid[0]:
        height, width = (2 ** (len(codec["block_out_channels"]) - 1) * side for side in grid)
        return height, width
    return None


def _num_parameters(path: Path) -> int:
    """Counted from the file's header alone."""
    with path.open("rb") as file:
        try:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            header = parse_json(file.read(length), source=str(path))
            return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
        except (struct.error, ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is truncated or no safetensors file: download it again") from error
