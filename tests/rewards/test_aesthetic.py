"""The aesthetic predictor: the released module, random and small, on a tiny random CLIP."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from swiftmask.rewards.aesthetic import WEIGHTS_FILE, AestheticScore, load_aesthetic, read_head

SIZE, WIDTH = 16, 24
MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]


class Predictor(nn.Module):
    """The released module at other widths."""

    def __init__(self) -> None:
        super().__init__()
        drop = nn.Dropout()
        sizes = [nn.Linear(WIDTH, 16), nn.Linear(16, 12), nn.Linear(12, 8), nn.Linear(8, 4), nn.Linear(4, 1)]
        self.layers = nn.Sequential(sizes[0], drop, sizes[1], drop, sizes[2], drop, *sizes[3:])


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Predictor().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def folder(predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP folder, and the predictor's file in it."""
    path = tmp_path_factory.mktemp("aesthetic")
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    text = {"vocab_size": 4, "max_position_embeddings": 8, **layers, **ids}
    vision = {"image_size": SIZE, "patch_size": 4, **layers}
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))
        for parameter in model.parameters():
            parameter.normal_(std=0.5) if parameter.ndim > 1 else None
    model.save_pretrained(path)
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a": 2, "a</w>": 3}
    CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(path)
    content = {"size": SIZE, "crop_size": SIZE, "image_mean": MEAN, "image_std": STD, "resample": 3}
    (path / "preprocessor_config.json").write_text(json.dumps(content))
    torch.save(predictor.state_dict(), path / WEIGHTS_FILE)
    return path


@pytest.fixture(scope="module")
def reward(folder: Path) -> AestheticScore:
    return load_aesthetic(folder, clip=folder)


def pictures(batch: int, size: int = SIZE) -> Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_scores_are_those_of_the_released_module(
    folder: Path, predictor: Predictor, reward: AestheticScore
) -> None:
    pixels_B3HW = (pictures(4) - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    embedding_BD = CLIPModel.from_pretrained(folder).get_image_features(pixels_B3HW).pooler_output
    expected_B = predictor.layers(F.normalize(embedding_BD, dim=-1))[:, 0]
    torch.testing.assert_close(reward(pictures(4), ["a"] * 4), expected_B, rtol=0, atol=1e-5)
    assert expected_B.std() > 1e-3
    with torch.autocast("cpu", torch.bfloat16):
        rounded_B = reward.head(F.normalize(embedding_BD, dim=-1))
    torch.testing.assert_close(rounded_B, expected_B, rtol=0, atol=1e-5)


def test_the_prompt_does_not_matter(reward: AestheticScore) -> None:
    assert torch.equal(reward(pictures(2), ["a", "a a"]), reward(pictures(2), ["", "b"]))


def test_gradients_raise_the_score(reward: AestheticScore) -> None:
    images_B3HW = pictures(2, 20).requires_grad_()
    before_B = reward(images_B3HW, ["a", "a"])
    (gradient_B3HW,) = torch.autograd.grad(before_B.sum(), images_B3HW)
    better_B3HW = (images_B3HW + 0.01 * gradient_B3HW / gradient_B3HW.abs().max()).detach()
    assert (reward(better_B3HW, ["a", "a"]) > before_B).all()


def test_it_follows_the_images(folder: Path) -> None:
    assert load_aesthetic(folder, clip=folder)(pictures(2).to("meta"), ["a", "a"]).is_meta


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers.4.bias": None}, r"is not the linear aesthetic predictor .*lacks layers\.4\.bias"),
        ({"layers.9.weight": torch.zeros(1, 1)}, r"more than five maps: layers\.9\.weight"),
        (
            {"layers.4.weight": torch.zeros(7, 12)},
            r"expected layers\.4 to make 8 numbers, got weight \(7, 12\)",
        ),
        ({"layers.7.bias": torch.zeros(2)}, r"expected layers\.7 to make 1 numbers, .* bias \(2,\)"),
    ],
)
def test_other_files_are_refused(
    predictor: Predictor, tmp_path: Path, change: dict[str, Tensor | None], message: str
) -> None:
    state = predictor.state_dict() | change
    path = tmp_path / "other.pth"
    torch.save({key: value for key, value in state.items() if value is not None}, path)
    with pytest.raises(ValueError, match=message):
        read_head(path)


def test_another_clip_is_refused(folder: Path, tmp_path: Path) -> None:
    state = torch.load(folder / WEIGHTS_FILE, weights_only=True)
    torch.save(state | {"layers.0.weight": torch.zeros(16, 9)}, tmp_path / WEIGHTS_FILE)
    with pytest.raises(ValueError, match="reads embeddings of width 9, the CLIP model makes 24"):
        load_aesthetic(tmp_path, clip=folder)


def test_missing_weights_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no aesthetic predictor at .*linearMSE\.pth: download"):
        load_aesthetic(tmp_path, clip=folder)


def test_wrong_input(reward: AestheticScore) -> None:
    with pytest.raises(ValueError, match="got 2 images and 1 prompts"):
        reward(pictures(2), ["a"])
