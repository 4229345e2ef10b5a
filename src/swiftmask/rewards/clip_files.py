"""CLIP checkpoints of the Hugging Face layout: found, downloaded and read with clear errors.

The network and the tokenizer are those of transformers, imported when first needed. Weights are read with
our own strict reader: `from_pretrained` would fill what a damaged file lacks with random numbers and say so
in a table of warnings only.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from swiftmask.core.files import load_strict
from swiftmask.core.reading import read_tensors
from swiftmask.core.settings import check_foreign_sizes, first_line, read_json
from swiftmask.rewards.clip_preprocessing import CONFIG

if TYPE_CHECKING:
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

PROCESSOR_FILES = (CONFIG, "tokenizer*.json", "vocab.json", "merges.txt", "special_tokens_map.json")
MODEL_FILES = ("config.json", "model.safetensors", "model-*-of-*.safetensors")
_PICKLES = ("pytorch_model.bin", "pytorch_model-*-of-*.bin")
_BUFFER = ".position_ids"
"""Older files keep these counting numbers beside the weights."""


def find_folder(source: str | Path, files: tuple[str, ...]) -> Path:
    """A local folder as it is; of a Hugging Face repository, `files` (name patterns), downloaded once.

    Errors: FileNotFoundError for a folder that is not there; ValueError if the repository gives nothing.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    repo_id = str(source)
    if isinstance(source, Path) or repo_id.startswith((".", "/", "~")) or repo_id.count("/") != 1:
        raise FileNotFoundError(
            f"no such CLIP folder: {source} (expected a local folder, or a Hugging Face repository like "
            "openai/clip-vit-large-patch14)"
        )
    return _download(repo_id, files)


def find_model(source: str | Path) -> Path:
    """The folder of a CLIP network. Pickles are downloaded only from a repository without safetensors."""
    folder = find_folder(source, MODEL_FILES)
    if not _weight_files(folder) and not Path(source).expanduser().is_dir():
        folder = find_folder(source, (*MODEL_FILES, *_PICKLES))
    return folder


def read_model(folder: Path) -> CLIPModel:
    """The network in the dtype of its file, on the CPU.

    Errors: FileNotFoundError or ValueError naming the missing, damaged or foreign file, key or shape.
    """
    from accelerate import init_empty_weights

    config_class, model_class, _ = clip_classes()
    content, state = _read_config(folder / "config.json"), _read_weights(folder)
    check_foreign_sizes(content, state, source=str(folder / "config.json"))
    try:
        with init_empty_weights():
            model = model_class(config_class.from_dict(content))
    except Exception as error:  # transformers checks some values, torch others
        raise ValueError(
            f"{folder / 'config.json'} is no config of a CLIP model ({first_line(error)})"
        ) from error
    load_strict(model, state, source=str(folder))
    return model


def read_tokenizer(folder: Path) -> CLIPTokenizer:
    """Errors: FileNotFoundError without vocabulary (transformers makes one up); ValueError if damaged."""
    complete = (folder / "tokenizer.json").is_file() or all(
        (folder / name).is_file() for name in ("vocab.json", "merges.txt")
    )
    if not complete:
        raise FileNotFoundError(
            f"no tokenizer in {folder}: expected tokenizer.json, or vocab.json and merges.txt; copy them "
            "from the checkpoint's repository, or name that one (processor=...)"
        )
    try:
        return clip_classes()[2].from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises Exception itself
        raise ValueError(
            f"the tokenizer in {folder} is damaged ({type(error).__name__}: {first_line(error)}): "
            "copy it again from the checkpoint's repository"
        ) from error


def clip_classes() -> tuple[type[CLIPConfig], type[CLIPModel], type[CLIPTokenizer]]:
    """The classes of transformers. Errors: ValueError saying how to install it, or why it does not import."""
    try:
        from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
    except (ImportError, RuntimeError) as error:
        raise ValueError(
            "PickScore, CLIP score, HPSv2.1 and the aesthetic predictor need transformers, which does not "
            f"import here ({first_line(error)}): pip install 'swiftmask[rewards]'"
        ) from error
    return CLIPConfig, CLIPModel, CLIPTokenizer


def _read_config(path: Path) -> dict[str, object]:
    expected = "expected the folder of a CLIP model, with config.json and model.safetensors"
    content = read_json(path, expected=expected)
    family = content.get("model_type")
    if family != "clip":
        raise ValueError(f"{path} describes no CLIP model: expected model_type 'clip', got {family!r}")
    return content


def _read_weights(folder: Path) -> dict[str, Tensor]:
    files = _weight_files(folder)
    if not files:
        raise FileNotFoundError(f"no weights in {folder}: expected model.safetensors or pytorch_model.bin")
    merged: dict[str, Tensor] = {}
    for path in files:
        merged |= read_tensors(path)
    return {key: value for key, value in merged.items() if not key.endswith(_BUFFER)}


def _weight_files(folder: Path) -> list[Path]:
    """The weights in the best form there is: whole before sharded, safetensors before pickles."""
    for pattern in (*MODEL_FILES[1:], *_PICKLES):
        if found := sorted(folder.glob(pattern)):
            return found
    return []


def _download(repo_id: str, files: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        return Path(snapshot_download(repo_id, allow_patterns=list(files)))
    except (OSError, ValueError, CachedRepoTreeNotFoundError) as error:
        raise ValueError(
            f"no local folder {repo_id}, and Hugging Face gave nothing ({first_line(error)}): check the "
            "name, or download the repository where there is a network and give its folder"
        ) from error
