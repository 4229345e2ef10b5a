"""PickScore and CLIP score on a tiny random CLIP: no network, no released weights."""

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from swiftmask.rewards import clip
from swiftmask.rewards.clip import ClipScore, PickScore, load_clip_score, load_pick_score
from swiftmask.rewards.clip_preprocessing import Preprocessing

SIZE, CONTEXT = 16, 12
PROMPTS = ["a frog", "a bad hog", "a frog"]
WEIGHTS, CONFIG, PROCESSOR = "model.safetensors", "config.json", "preprocessor_config.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of 40 text tokens and 16x16 pixels, as transformers saves it."""
    path = tmp_path_factory.mktemp("clip") / "tiny"
    torch.manual_seed(0)
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    text = {"vocab_size": 40, "max_position_embeddings": CONTEXT, **layers, **ids}
    vision = {"image_size": SIZE, "patch_size": 4, **layers}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3) if parameter.ndim > 1 else None
    model.save_pretrained(path)
    tokenizer().save_pretrained(path)
    crop_size = {"height": SIZE, "width": SIZE}
    CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=crop_size).save_pretrained(path)
    return path


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """The same folder, to be damaged."""
    return Path(shutil.copytree(folder, tmp_path / "copied"))


def tokenizer() -> CLIPTokenizer:
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    for letter in "abcdefghijklmnopqrs":
        vocabulary |= {letter: len(vocabulary), f"{letter}</w>": len(vocabulary) + 1}
    return CLIPTokenizer(vocab=vocabulary, merges=[])


def pictures(batch: int, height: int = 40, width: int = 56) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def to_pil(image_3HW: Tensor) -> Image.Image:
    return Image.fromarray((image_3HW * 255).round().byte().permute(1, 2, 0).numpy())


@torch.no_grad()
def test_scores_are_those_of_transformers(folder: Path) -> None:
    """On images that need no resizing: the model card's arithmetic with transformers' own processor."""
    model, images_B3HW = CLIPModel.from_pretrained(folder).eval(), pictures(3, SIZE, SIZE)
    pixels_B3HW = CLIPImageProcessorPil.from_pretrained(folder)(
        [to_pil(image) for image in images_B3HW], return_tensors="pt"
    ).pixel_values
    text = tokenizer()(PROMPTS, padding=True, return_tensors="pt")
    logits_B = model(pixel_values=pixels_B3HW, **text).logits_per_image.diagonal()
    cosine_B = logits_B / model.logit_scale.exp()
    images_B3HW = (images_B3HW * 255).round() / 255
    pick_B, clip_B = (load(folder)(images_B3HW, PROMPTS) for load in (load_pick_score, load_clip_score))
    torch.testing.assert_close(pick_B, logits_B, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(clip_B, 100 * cosine_B.clamp(min=0), rtol=1e-4, atol=1e-4)
    assert cosine_B.std() > 0.01


@pytest.mark.parametrize("shape", [(40, 56), (57, 33), (16, 16), (9, 13), (16, 41)])
def test_preprocessing_is_pil_bicubic(folder: Path, shape: tuple[int, int]) -> None:
    """Against PIL in floating point, which neither rounds nor cuts on the way."""
    preprocess, image_3HW = Preprocessing.read(folder), pictures(1, *shape)[0] * 0.5 + 0.25
    short = min(shape)
    height, width = (int(SIZE * side / short) for side in shape)
    top, left = (height - SIZE) // 2, (width - SIZE) // 2
    planes = [
        Image.fromarray(plane_HW.numpy()).resize((width, height), Image.Resampling.BICUBIC)
        for plane_HW in image_3HW
    ]
    resized_3HW = torch.from_numpy(np.stack([np.asarray(plane) for plane in planes]))
    mean_311, std_311 = (torch.tensor(row)[:, None, None] for row in (preprocess.mean, preprocess.std))
    expected_3HW = (resized_3HW[:, top : top + SIZE, left : left + SIZE] - mean_311) / std_311
    torch.testing.assert_close(preprocess(image_3HW[None])[0], expected_3HW, rtol=0, atol=2e-5)
    assert 0 < resized_3HW.min() and resized_3HW.max() < 1


@pytest.mark.parametrize("shape", [(40, 56), (57, 33), (9, 13)])
def test_preprocessing_is_the_processors(folder: Path, shape: tuple[int, int]) -> None:
    """Up to the processor's rounding to bytes, after each of its two passes."""
    images_B3HW = (pictures(2, *shape) * 255).round() / 255
    theirs = CLIPImageProcessorPil.from_pretrained(folder)
    expected = theirs([to_pil(image) for image in images_B3HW], return_tensors="pt").pixel_values
    difference = (Preprocessing.read(folder)(images_B3HW) - expected).abs().max()
    assert difference < 1.25 / 255 / 0.26


def test_the_gradient_ignores_that_overshoot_is_cut(folder: Path) -> None:
    """Resizing is linear, so where the cut is ignored all images have one gradient."""
    preprocess, weights = Preprocessing.read(folder), torch.randn(1, 3, SIZE, SIZE)
    gradients = []
    for image_13HW in (pictures(1, 9, 13).round(), torch.full((1, 3, 9, 13), 0.5)):
        image_13HW.requires_grad_()
        (preprocess(image_13HW) * weights).sum().backward()
        gradients.append(image_13HW.grad)
    torch.testing.assert_close(*gradients)
    low, high = (torch.tensor([[0.0], [1.0]]) - torch.tensor(preprocess.mean)) / torch.tensor(preprocess.std)
    seen_3X = preprocess(pictures(1, 9, 13).round())[0].flatten(1)
    torch.testing.assert_close(seen_3X.amin(1), low)
    torch.testing.assert_close(seen_3X.amax(1), high)


def test_old_and_new_processor_files_mean_the_same(copied: Path) -> None:
    new = Preprocessing.read(copied)
    path = copied / PROCESSOR
    old = json.loads(path.read_text()) | {"size": SIZE, "crop_size": SIZE}
    path.write_text(json.dumps(old))
    assert Preprocessing.read(copied) == new
    assert (new.short_side, new.crop) == (SIZE, (SIZE, SIZE))


@pytest.mark.parametrize("load", [load_pick_score, load_clip_score])
def test_gradients_flow_to_every_pixel_and_ascending_them_raises_the_score(
    folder: Path, load: Callable[[Path], PickScore | ClipScore]
) -> None:
    reward = load(folder)
    images_B3HW = pictures(3).mul(1.2).sub(0.1).clamp(0, 1)
    prompts = positive_prompts(reward, images_B3HW)
    images_B3HW.requires_grad_()
    before_B = reward(images_B3HW, prompts)
    (gradient_B3HW,) = torch.autograd.grad(before_B.sum(), images_B3HW)
    # The crop drops columns at both sides of a wide image; everything inside is seen, clipped or not.
    assert (gradient_B3HW[..., 12:-12].abs() > 0).all()
    after_B = reward((images_B3HW + 0.02 * gradient_B3HW / gradient_B3HW.abs().max()).detach(), prompts)
    assert (after_B > before_B).all()
    assert not any(parameter.requires_grad for parameter in reward.similarity.model.parameters())


def positive_prompts(reward: PickScore | ClipScore, images_B3HW: Tensor) -> list[str]:
    """For each image a prompt with a positive cosine, where CLIP score has a gradient."""
    words = ["a", "b c", "frog", "hog", "a bad idea", "koala"]
    with torch.no_grad():
        cosines_BX = torch.stack([reward.similarity(images_B3HW, [w] * len(images_B3HW)) for w in words], 1)
    assert (cosines_BX.max(dim=1).values > 0).all()
    return [words[best] for best in cosines_BX.argmax(dim=1)]


def test_negative_cosines_score_zero(folder: Path) -> None:
    reward, images_B3HW = load_clip_score(folder), pictures(8)
    prompts = positive_prompts(reward, images_B3HW)
    assert (reward(images_B3HW, prompts) > 0).all()
    with torch.no_grad():
        reward.similarity.model.visual_projection.weight.neg_()
    assert torch.equal(reward(images_B3HW, prompts), torch.zeros(8))


@torch.no_grad()
def test_a_score_depends_on_its_own_image_and_prompt(folder: Path) -> None:
    images_B3HW, prompts = pictures(3), ["a frog", "a", "a very long text that is cut off"]
    together_B = load_pick_score(folder)(images_B3HW, prompts)
    alone_B = torch.cat([load_pick_score(folder)(images_B3HW[i, None], [prompts[i]]) for i in range(3)])
    torch.testing.assert_close(together_B, alone_B)
    swapped_B = load_pick_score(folder)(images_B3HW.flip(0), prompts[::-1])
    torch.testing.assert_close(swapped_B.flip(0), together_B)


def test_each_prompt_is_embedded_once(folder: Path) -> None:
    reward, seen = load_pick_score(folder), []
    text_model = reward.similarity.model.text_model
    text_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    first_B = reward(pictures(3), PROMPTS)
    assert seen == [2]
    assert torch.equal(reward(pictures(3), PROMPTS), first_B)
    assert seen == [2]
    reward(pictures(2), ["a frog", "a cop"])
    assert seen == [2, 1]


def test_kept_texts_do_not_depend_on_who_asked_first(folder: Path) -> None:
    """Evaluation under inference mode and autocast, then training: same numbers, and a gradient."""
    fresh, used = load_pick_score(folder), load_pick_score(folder)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        used(pictures(3), PROMPTS)
    images_B3HW = pictures(3).requires_grad_()
    scores_B = used(images_B3HW, PROMPTS)
    scores_B.sum().backward()
    assert torch.equal(scores_B, fresh(pictures(3), PROMPTS))
    assert images_B3HW.grad is not None


def test_dtype_of_weights_and_images(folder: Path) -> None:
    exact_B = load_pick_score(folder)(pictures(3), PROMPTS)
    half = load_pick_score(folder, dtype=torch.bfloat16)
    assert half.similarity.model.dtype == torch.bfloat16
    scores_B = half(pictures(3).bfloat16(), PROMPTS)
    assert scores_B.dtype == torch.float32
    torch.testing.assert_close(scores_B, exact_B, rtol=0, atol=0.05 * float(exact_B.abs().max()))


def test_the_reward_follows_the_images(folder: Path) -> None:
    reward = load_pick_score(folder)
    reward(pictures(1), PROMPTS[:1])
    with torch.inference_mode():
        scores_B = reward(pictures(1).to("meta"), PROMPTS[:1])
    assert scores_B.is_meta
    weights = list(reward.similarity.model.parameters())
    assert all(weight.is_meta and not weight.is_inference() for weight in weights)


def test_sharded_pickled_and_old_weights_are_read(copied: Path) -> None:
    whole_B = load_pick_score(copied)(pictures(3), PROMPTS)
    state = load_file(copied / WEIGHTS)
    (copied / WEIGHTS).unlink()
    old = {"text_model.embeddings.position_ids": torch.arange(CONTEXT)[None]}
    torch.save(state | old, copied / "pytorch_model.bin")
    assert torch.equal(load_pick_score(copied)(pictures(3), PROMPTS), whole_B)
    torch.save({}, copied / "pytorch_model.bin")  # an empty one would be refused, but shards come first
    keys = sorted(state)
    for index, part in enumerate((keys[:30], keys[30:]), start=1):
        save_file({key: state[key] for key in part}, copied / f"model-0000{index}-of-00002.safetensors")
    assert torch.equal(load_pick_score(copied)(pictures(3), PROMPTS), whole_B)


def test_vocabulary_and_merges_serve_as_a_tokenizer(copied: Path) -> None:
    whole_B = load_pick_score(copied)(pictures(3), PROMPTS)
    vocabulary = json.loads((copied / "tokenizer.json").read_text())["model"]["vocab"]
    (copied / "tokenizer.json").unlink()
    (copied / "vocab.json").write_text(json.dumps(vocabulary))
    (copied / "merges.txt").write_text("#version: 0.2\n")
    assert torch.equal(load_pick_score(copied)(pictures(3), PROMPTS), whole_B)


def test_a_repository_is_downloaded_file_by_file(
    folder: Path, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what is read; pickles only where there is nothing better; the released PickScore's processor."""
    asked = []

    def snapshot_download(repo_id: str, allow_patterns: Sequence[str]) -> str:
        asked.append(repo_id)
        cache = tmp_path / "cache" / repo_id
        cache.mkdir(parents=True, exist_ok=True)
        for path in copied.iterdir():
            if any(fnmatch(path.name, pattern) for pattern in allow_patterns):
                shutil.copy(path, cache / path.name)
        return str(cache)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    torch.save({"a": torch.zeros(1)}, copied / "pytorch_model.bin")
    save_file({"a": torch.zeros(1)}, copied / "open_clip_model.safetensors")
    expected_B = load_pick_score(folder)(pictures(3), PROMPTS)
    assert torch.equal(load_pick_score()(pictures(3), PROMPTS), expected_B)
    assert asked == [clip._PROCESSORS[clip.PICK_SCORE], clip.PICK_SCORE]
    names = {path.name for path in (tmp_path / "cache").rglob("*.*") if path.is_file()}
    assert not names & {"pytorch_model.bin", "open_clip_model.safetensors"}
    torch.save(load_file(copied / WEIGHTS), copied / "pytorch_model.bin")
    (copied / WEIGHTS).unlink()
    assert torch.equal(load_pick_score("some/old")(pictures(3), PROMPTS), expected_B)


def test_nothing_to_download_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ValueError, match="no local folder someone/clip, and Hugging Face gave nothing"
    ) as error:
        load_clip_score("someone/clip")
    assert "\n" not in str(error.value) and "give its folder" in str(error.value)
    for source in (tmp_path / "absent", "./absent", "absent", "a/b/c"):
        with pytest.raises(FileNotFoundError, match="no such CLIP folder: .*absent|a/b/c"):
            load_clip_score(source)


def test_the_missing_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"need transformers.*pip install 'swiftmask\[rewards\]'"):
        load_pick_score(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (WEIGHTS, r"no weights in .*expected model\.safetensors"),
        (CONFIG, r"no .*config\.json: expected the folder of a CLIP model"),
        (PROCESSOR, r"no .*preprocessor_config\.json: a CLIP folder has one"),
        ("tokenizer.json", r"no tokenizer in .*expected tokenizer\.json, or vocab\.json and merges\.txt"),
    ],
)
def test_missing_files_are_named(copied: Path, name: str, message: str) -> None:
    (copied / name).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        load_pick_score(copied)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (CONFIG, "{", r"config\.json is damaged"),
        (CONFIG, "[]", r"config\.json is damaged: expected a JSON object, got list"),
        (CONFIG, '{"model_type": "bert"}', r"expected model_type 'clip', got 'bert'"),
        (CONFIG, '{"model_type": "clip", "text_config": [1]}', r"is no config of a CLIP model"),
        (CONFIG, '{"model_type": "clip", "vision_config": {"hidden_size": "x"}}', r"no config of a CLIP"),
        (PROCESSOR, "{", r"preprocessor_config\.json is damaged"),
        (PROCESSOR, "[]", r"preprocessor_config\.json is damaged"),
        (PROCESSOR, '{"size": 16}', r"does not describe CLIP's preprocessing \(KeyError: 'crop_size'\)"),
        ("tokenizer.json", "{", r"tokenizer in .* is damaged \(JSONDecodeError"),
        ("tokenizer.json", "{}", r"tokenizer in .* is damaged"),
        (WEIGHTS, "", r"model\.safetensors is truncated"),
    ],
)
def test_damaged_files_are_named(copied: Path, name: str, content: str, message: str) -> None:
    (copied / name).write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        load_pick_score(copied)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resample": 2}, "expected bicubic resizing"),
        ({"crop_size": 24, "size": 24}, "do not belong together: the model sees 16x16 pixels"),
        ({"crop_size": 24}, r"a crop of \(24, 24\) does not fit into a short side of 16"),
        ({"image_std": [0.0, 1.0, 1.0]}, "expected mean and std of three colours"),
    ],
)
def test_foreign_preprocessing_is_refused(copied: Path, change: dict[str, object], message: str) -> None:
    path = copied / PROCESSOR
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        load_pick_score(copied)


def test_foreign_tokenizers_are_refused(folder: Path, copied: Path) -> None:
    larger = tokenizer()
    larger.add_tokens(["frog"])
    larger.save_pretrained(copied)
    with pytest.raises(ValueError, match="the model knows 40 text tokens, the tokenizer has 41"):
        load_pick_score(folder, processor=copied)


def test_weights_that_do_not_fit_are_never_filled_up(copied: Path, capfd: pytest.CaptureFixture[str]) -> None:
    state = load_file(copied / WEIGHTS)
    state["text_projection.weight"] = torch.zeros(3, 3)
    del state["visual_projection.weight"]
    save_file(state, copied / WEIGHTS)
    with pytest.raises(ValueError, match=r"1 missing: visual_projection\.weight; 1 wrong shape: text_proj"):
        load_pick_score(copied)
    (copied / WEIGHTS).write_bytes((copied / WEIGHTS).read_bytes()[:-500])
    with pytest.raises(ValueError, match="truncated"):
        load_pick_score(copied)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("images_B3HW", "prompts", "message"),
    [
        (torch.rand(2, 3, 8, 8), ["a"], "one prompt per image, got 2 images and 1 prompts"),
        (torch.rand(2, 3, 8, 8), "ab", "got 2 images and a single string"),
        (torch.rand(2, 1, 8, 8), ["a", "b"], r"expected images \[B, 3, H, W\]"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), ["a"], r"real values in \[0, 1\], got .* torch\.uint8"),
    ],
)
def test_wrong_input(folder: Path, images_B3HW: Tensor, prompts: Sequence[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_pick_score(folder)(images_B3HW, prompts)
