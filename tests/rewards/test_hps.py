"""HPSv2.1 on a tiny random model in open_clip's layout, built here from plain PyTorch modules."""

import json
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTokenizer

from swiftmask.rewards.hps import (
    WEIGHTS_FILE,
    HumanPreferenceScore,
    clip_of_open_clip,
    load_hps,
    to_transformers,
    whole_image,
)

SIZE, PATCH, CONTEXT, NUM_HEADS, WIDTH = 16, 4, 12, 16, 24
LETTERS = "abcdefghijklmnopqrs"
BEGIN, END = 2 * len(LETTERS), 2 * len(LETTERS) + 1
PROMPTS = ["a frog", "a bad hog", "a long prompt of a frog and a hog"]
MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]
TOLERANCE = {"rtol": 0, "atol": 2e-6}


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, NUM_HEADS, batch_first=True)
        layers = {
            "c_fc": nn.Linear(width, 2 * width),
            "gelu": nn.GELU(),
            "c_proj": nn.Linear(2 * width, width),
        }
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x_BLD: Tensor, hidden_LL: Tensor | None) -> Tensor:
        seen_BLD = self.ln_1(x_BLD)
        x_BLD = x_BLD + self.attn(seen_BLD, seen_BLD, seen_BLD, attn_mask=hidden_LL, need_weights=False)[0]
        return x_BLD + self.mlp(self.ln_2(x_BLD))


class Blocks(nn.Module):
    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width) for _ in range(depth))

    def forward(self, x_BLD: Tensor, hidden_LL: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x_BLD = block(x_BLD, hidden_LL)
        return x_BLD


class Visual(nn.Module):
    def __init__(self, width: int = 48, depth: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, PATCH, stride=PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn((SIZE // PATCH) ** 2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Blocks(width, depth)
        self.proj = nn.Parameter(torch.randn(width, WIDTH))

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        patches_BLD = self.conv1(pixels_B3HW).flatten(2).transpose(1, 2)
        first_B1D = self.class_embedding.expand(len(patches_BLD), 1, -1)
        x_BLD = torch.cat([first_B1D, patches_BLD], dim=1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x_BLD))[:, 0]) @ self.proj


class OpenClip(nn.Module):
    """The names of open_clip's CLIP, and what it computes."""

    def __init__(self, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.visual, self.transformer = Visual(), Blocks(width, depth)
        self.token_embedding = nn.Embedding(END + 1, width)
        self.positional_embedding = nn.Parameter(torch.randn(CONTEXT, width))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, WIDTH))
        self.logit_scale = nn.Parameter(torch.tensor(4.6))

    def embed_texts(self, tokens_BT: Tensor) -> Tensor:
        """The embedding at the largest token, which is the end."""
        causal_TT = torch.full((CONTEXT, CONTEXT), -torch.inf).triu(1)
        x_BTD = self.token_embedding(tokens_BT) + self.positional_embedding
        x_BTD = self.ln_final(self.transformer(x_BTD, causal_TT))
        return x_BTD[torch.arange(len(x_BTD)), tokens_BT.argmax(dim=1)] @ self.text_projection

    def cosines(self, pixels_B3HW: Tensor, tokens_BT: Tensor) -> Tensor:
        return F.cosine_similarity(self.visual(pixels_B3HW), self.embed_texts(tokens_BT))


def tokenize(prompts: Sequence[str]) -> Tensor:
    """As open_clip: padded with zeros, and cut so that the end stays."""
    rows = torch.zeros(len(prompts), CONTEXT, dtype=torch.long)
    for row, prompt in zip(rows, prompts, strict=True):
        letters = [(word[i], i == len(word) - 1) for word in prompt.split() for i in range(len(word))]
        tokens = [2 * LETTERS.index(letter) + last for letter, last in letters if letter in LETTERS]
        tokens = [BEGIN, *tokens[: CONTEXT - 2], END]
        row[: len(tokens)] = torch.tensor(tokens)
    return rows


@pytest.fixture(scope="module")
def reference() -> OpenClip:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = OpenClip().eval().requires_grad_(False)
        for parameter in model.parameters():
            parameter.normal_(std=0.5) if parameter.ndim else None
    return model


@pytest.fixture(scope="module")
def folder(reference: OpenClip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The released file's form, with tokenizer and preprocessing beside it."""
    path = tmp_path_factory.mktemp("hps")
    torch.save({"state_dict": reference.state_dict()}, path / WEIGHTS_FILE)
    write_processor(path, {"<|startoftext|>": BEGIN, "<|endoftext|>": END})
    return path


def write_processor(path: Path, special: dict[str, int]) -> None:
    letters = [f"{letter}{end}" for letter in LETTERS for end in ("", "</w>")]
    free = (number for number in range(len(letters) + len(special)) if number not in special.values())
    vocabulary = dict(zip(letters, free, strict=True)) | special
    CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(path)
    content = {"size": SIZE, "crop_size": SIZE, "image_mean": MEAN, "image_std": STD, "resample": 3}
    (path / "preprocessor_config.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def reward(folder: Path) -> HumanPreferenceScore:
    return load_hps(folder, processor=folder)


def pictures(batch: int, height: int = SIZE, width: int = SIZE) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def normalised(images_B3HW: Tensor) -> Tensor:
    return (images_B3HW - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def test_scores_are_those_of_open_clip(reference: OpenClip, reward: HumanPreferenceScore) -> None:
    expected_B = reference.cosines(normalised(pictures(3)), tokenize(PROMPTS))
    torch.testing.assert_close(reward(pictures(3), PROMPTS), expected_B, **TOLERANCE)
    assert expected_B.std() > 0.01


def test_every_tensor_of_the_file_matters(reference: OpenClip) -> None:
    """So that equal scores mean that each went to its place."""
    model = OpenClip().eval()
    model.load_state_dict(reference.state_dict())
    weights = {name: weight for name, weight in model.named_parameters() if name != "logit_scale"}
    scores_B = model.cosines(normalised(pictures(3)), tokenize(PROMPTS))
    gradients = torch.autograd.grad(scores_B.square().sum(), list(weights.values()))
    assert [name for name, gradient in zip(weights, gradients, strict=True) if not gradient.any()] == []


def test_a_wide_image_is_seen_whole_between_black_bars(
    reference: OpenClip, reward: HumanPreferenceScore
) -> None:
    images_B3HW = pictures(1, 8, SIZE)  # needs no resizing
    barred_B3HW = F.pad(images_B3HW, (0, 0, 4, 4))
    expected_B = reference.cosines(normalised(barred_B3HW), tokenize(PROMPTS[:1]))
    torch.testing.assert_close(reward(images_B3HW, PROMPTS[:1]), expected_B, **TOLERANCE)


@pytest.mark.parametrize(
    ("shape", "rows", "columns"),
    [
        ((40, 80), slice(4, 12), slice(0, 16)),
        ((30, 20), slice(0, 16), slice(2, 13)),  # 11 columns: the odd bar is the right one
        ((5, 16), slice(5, 10), slice(0, 16)),
        ((2, 900), slice(7, 8), slice(0, 16)),
    ],
)
def test_bars(shape: tuple[int, int], rows: slice, columns: slice) -> None:
    found_B3HW = whole_image(torch.ones(1, 3, *shape), SIZE)
    expected_B3HW = torch.zeros(1, 3, SIZE, SIZE)
    expected_B3HW[..., rows, columns] = 1
    torch.testing.assert_close(found_B3HW, expected_B3HW)


def test_gradients_reach_the_edges_and_raise_the_score(reward: HumanPreferenceScore) -> None:
    images_B3HW = pictures(2, 24, 40).requires_grad_()
    before_B = reward(images_B3HW, PROMPTS[:2])
    (gradient_B3HW,) = torch.autograd.grad(before_B.sum(), images_B3HW)
    assert (gradient_B3HW[..., [0, -1]].abs().amax(dim=(1, 2)) > 0).all()
    better_B3HW = (images_B3HW + 0.01 * gradient_B3HW / gradient_B3HW.abs().max()).detach()
    assert (reward(better_B3HW, PROMPTS[:2]) > before_B).all()


def test_dtypes(folder: Path, reward: HumanPreferenceScore) -> None:
    exact_B = reward(pictures(3, 10, 20), PROMPTS)
    half = load_hps(folder / WEIGHTS_FILE, processor=folder, dtype=torch.bfloat16)
    assert half.similarity.model.dtype == torch.bfloat16
    scores_B = half(pictures(3, 10, 20).bfloat16(), PROMPTS)
    assert scores_B.dtype == torch.float32
    torch.testing.assert_close(scores_B, exact_B, rtol=0, atol=0.05)


def test_half_precision_files_and_an_old_causal_mask(
    folder: Path, tmp_path: Path, reference: OpenClip
) -> None:
    state = {key: value.half() for key, value in reference.state_dict().items()}
    torch.save(state | {"attn_mask": torch.zeros(CONTEXT, CONTEXT)}, tmp_path / "old.pt")
    reward = load_hps(tmp_path / "old.pt", processor=folder)
    assert reward.similarity.model.dtype == torch.float32
    reference_B = load_hps(folder, processor=folder)(pictures(3), PROMPTS)
    torch.testing.assert_close(reward(pictures(3), PROMPTS), reference_B, rtol=0, atol=0.01)


def test_keys_that_are_missing_or_too_many_are_named(reference: OpenClip) -> None:
    state = dict(reference.state_dict())
    del state["visual.ln_pre.weight"], state["transformer.resblocks.1.attn.in_proj_bias"]
    state |= {"score_head.weight": torch.zeros(2), "visual.proj": torch.zeros(48, 7)}
    with pytest.raises(ValueError) as error:
        clip_of_open_clip(state, source="file.pt")
    for part in (
        "file.pt does not fit CLIPModel",
        "text_model.encoder.layers.1.self_attn.q_proj.bias",
        "vision_model.pre_layrnorm.weight",
        "1 unexpected: score_head.weight",
        "visual_projection.weight (expected (24, 48), got (7, 48))",
    ):
        assert part in str(error.value)


def test_other_models_are_refused(reference: OpenClip) -> None:
    with pytest.raises(
        ValueError, match=r"file\.pt is not an open_clip ViT .* it lacks visual\.conv1\.weight"
    ):
        clip_of_open_clip({"layers.0.weight": torch.zeros(2, 2)}, source="file.pt")
    with pytest.raises(
        ValueError, match="no ViT-H-14: expected a width that 5 attention heads share, got 32"
    ):
        clip_of_open_clip(reference.state_dict(), source="file.pt", num_heads=5)


def test_every_key_gets_a_name_of_transformers(reference: OpenClip) -> None:
    names = set(to_transformers(reference.state_dict()))
    assert names == set(clip_of_open_clip(reference.state_dict(), source="x").state_dict())


def test_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / WEIGHTS_FILE):
        with pytest.raises(FileNotFoundError, match=r"no HPSv2\.1 weights at .*_compressed\.pt: download"):
            load_hps(path, processor=folder)
    with pytest.raises(FileNotFoundError, match="no such CLIP folder"):
        load_hps(folder, processor=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no tokenizer in"):
        load_hps(folder, processor=tmp_path)


def test_a_tokenizer_with_another_end_is_refused(folder: Path, tmp_path: Path) -> None:
    write_processor(tmp_path, {"<|startoftext|>": 0, "<|endoftext|>": 1})
    with pytest.raises(ValueError, match=f"texts end with token {END}, the tokenizer's with 1"):
        load_hps(folder, processor=tmp_path)


@pytest.mark.parametrize(
    ("images_B3HW", "prompts", "message"),
    [
        (torch.rand(3, 8, 9), ["a"], r"expected images \[B, 3, H, W\]"),
        (torch.zeros(1, 3, 8, 9, dtype=torch.uint8), ["a"], "real values"),
        (torch.rand(2, 3, 8, 9), ["a"], "got 2 images and 1 prompts"),
    ],
)
def test_wrong_input(
    reward: HumanPreferenceScore, images_B3HW: Tensor, prompts: Sequence[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        reward(images_B3HW, prompts)
