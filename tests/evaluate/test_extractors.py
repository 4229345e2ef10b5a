"""Extractors the user names: what they compute, what they are called, and what is wrong with a bad one."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model

from swiftmask.evaluate import extractors
from swiftmask.evaluate.extractors import (
    files_sha256,
    load_extractor,
)
from swiftmask.rewards.clip_preprocessing import Preprocessing
from swiftmask.rewards.scenes import load_judge

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

SIZE = 16
LAYERS = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
PROCESSOR = {
    "crop_size": {"height": SIZE, "width": SIZE},
    "size": {"shortest_edge": SIZE},
    "resample": 3,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.4],
}


class Means(nn.Module):
    """Features are the colours' means; logits are their multiples."""

    def forward(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        features_BD = images_B3HW.mean(dim=(2, 3), keepdim=True)
        return features_BD, 1000 * features_BD.flatten(1)


class Detector(nn.Module):
    """The calling convention of the canonical Inception."""

    def forward(self, images: Tensor, return_features: bool = False, no_output_bias: bool = False) -> Tensor:
        assert images.dtype == torch.uint8
        features = images.float().mean(dim=(2, 3))
        if return_features:
            return features
        return features.softmax(dim=1) if no_output_bias else torch.zeros_like(features)


class Flat(nn.Module):
    """Takes 4x4 images only."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(48, 5)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        return self.linear(images_B3HW.flatten(1))


def scripted(module: nn.Module, path: Path) -> Path:
    torch.jit.script(module).save(str(path))  # pyright: ignore[reportAttributeAccessIssue]
    return path


def pictures(size: int = 4) -> Tensor:
    return torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("networks") / "tiny dinov2"
    torch.manual_seed(0)
    model = Dinov2Model(Dinov2Config(image_size=SIZE, patch_size=8, mlp_ratio=1, **LAYERS))
    return saved(model, folder)


def saved(model: nn.Module, folder: Path) -> Path:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    model.save_pretrained(folder)  # pyright: ignore[reportCallIssue]
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder


@contextmanager
def one_line_error(kind: type[Exception], match: str) -> Iterator[None]:
    with pytest.raises(kind, match=match) as error:
        yield
    assert "\n" not in str(error.value)


def test_the_judge_names_fd_scenes() -> None:
    extractor, images_B3HW = load_extractor("scenes"), pictures(64)
    assert extractor.identity.metric("fd") == "fd_scenes"
    found = extractor(images_B3HW)
    assert set(found) == {"features"}
    assert torch.equal(found["features"], load_judge().features(images_B3HW))


def test_a_bundled_reader_is_an_extractor_by_its_name() -> None:
    extractor = load_extractor("emoji-judge")
    assert extractor.identity.name == "emoji-judge"
    assert extractor.describe(torch.rand(2, 3, 48, 48))[0].shape == (2, 256)


def test_a_script_gives_features_and_safe_probabilities(tmp_path: Path) -> None:
    path = scripted(Means(), tmp_path / "my net.pt")
    extractor, images_B3HW = load_extractor(path), pictures()
    assert extractor.identity.metric("precision") == "precision_my-net"
    assert extractor.identity.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    found = extractor(images_B3HW)
    torch.testing.assert_close(found["features"], images_B3HW.mean(dim=(2, 3)))
    torch.testing.assert_close(found["log_probabilities"].exp().sum(dim=1), torch.ones(3))
    assert found["log_probabilities"].isfinite().all()


def test_a_script_may_give_features_alone(tmp_path: Path) -> None:
    network = Flat()
    found = load_extractor(scripted(network, tmp_path / "flat.pt"))(pictures())
    torch.testing.assert_close(found["features"], network(pictures()))
    assert set(found) == {"features"}


def test_fid_is_the_name_of_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A detector is called with bytes; it is named FID by its hash, whatever its file is called."""
    path = scripted(Detector(), tmp_path / "inception-2015-12-05.pt")
    extractor, images_B3HW = load_extractor(path), pictures()
    found = extractor(images_B3HW)
    bytes_BD = (images_B3HW * 255).round().mean(dim=(2, 3))
    torch.testing.assert_close(found["features"], bytes_BD)
    torch.testing.assert_close(found["log_probabilities"], bytes_BD.log_softmax(dim=1))
    names = [extractor.identity.metric(kind) for kind in ("fd", "kid", "is", "recall")]
    assert names == [f"{kind}_inception-2015-12-05" for kind in ("fd", "kid", "is", "recall")]
    monkeypatch.setattr(extractors, "CANONICAL_INCEPTION", files_sha256([path]))
    names = [extractor.identity.metric(kind) for kind in ("fd", "kid", "is", "recall")]
    assert names == ["FID", "KID", "IS", "recall"]


@torch.no_grad()
def test_dinov2_is_the_pooled_output_after_its_preprocessing(dinov2: Path) -> None:
    extractor, images_B3HW = load_extractor(dinov2), pictures(24)
    model = Dinov2Model.from_pretrained(dinov2).eval()
    pixels_B3HW = Preprocessing.read(dinov2)(images_B3HW)
    assert pixels_B3HW.shape == (3, 3, SIZE, SIZE)
    torch.testing.assert_close(extractor(images_B3HW)["features"], model(pixels_B3HW).last_hidden_state[:, 0])
    assert extractor.identity.name == "tiny-dinov2"
    assert extractor.identity.sha256 == files_sha256([dinov2 / "model.safetensors"])


@torch.no_grad()
def test_clip_is_the_projected_embedding(tmp_path: Path) -> None:
    text = {"vocab_size": 9, "max_position_embeddings": 4, "intermediate_size": 8, **LAYERS}
    vision = {"image_size": SIZE, "patch_size": 8, "intermediate_size": 8, **LAYERS}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=6)
    folder = saved(CLIPModel(config), tmp_path / "clip")
    model, images_B3HW = CLIPModel.from_pretrained(folder).eval(), pictures(SIZE)
    pixels_B3HW = Preprocessing.read(folder)(images_B3HW)
    expected_BD = model.visual_projection(model.vision_model(pixels_B3HW).pooler_output)
    torch.testing.assert_close(load_extractor(folder)(images_B3HW)["features"], expected_BD)


def test_bad_scripts_are_named(tmp_path: Path) -> None:
    path = scripted(Means(), tmp_path / "x.pt")
    path.write_bytes(path.read_bytes()[:500])
    with one_line_error(ValueError, "x.pt is damaged or no TorchScript file"):
        load_extractor(path)
    torch.save({"weight": torch.zeros(2)}, tmp_path / "state.pth")
    with one_line_error(ValueError, r"state.pth is damaged or no TorchScript.*torch.jit.script\(module\)"):
        load_extractor(tmp_path / "state.pth")
    with one_line_error(ValueError, r"flat does not take images \(3, 3, 5, 5\)"):
        load_extractor(scripted(Flat(), tmp_path / "flat.pt"))(pictures(5))
    with one_line_error(FileNotFoundError, "no such extractor: absent .*hf download"):
        load_extractor("absent")


def test_bad_folders_are_named(dinov2: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(dinov2, tmp_path / "copied"))
    state = load_file(folder / "model.safetensors")
    removed = sorted(state)[0]
    save_file(
        {name: value for name, value in state.items() if name != removed},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    with one_line_error(ValueError, f"copied lack {removed}: download the folder again"):
        load_extractor(folder)
    (folder / "model.safetensors").write_bytes(b"nothing")
    with one_line_error(ValueError, "copied.model.safetensors is truncated or no safetensors"):
        load_extractor(folder)
    (folder / "preprocessor_config.json").unlink()
    with one_line_error(FileNotFoundError, "preprocessor_config.json"):
        load_extractor(folder)
    (folder / "model.safetensors").unlink()
    with one_line_error(FileNotFoundError, "no weights in .*copied"):
        load_extractor(folder)
    (folder / "config.json").write_text("{")
    with one_line_error(ValueError, "config.json is damaged"):
        load_extractor(folder)
