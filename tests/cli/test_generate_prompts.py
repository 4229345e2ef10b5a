"""`swiftmask generate` for text-to-image models: prompts, negatives, sizes, tuned weights, start pictures."""

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import swiftmask
from swiftmask.cli import main
from swiftmask.cli.jobs import Job
from swiftmask.core.protocol import SamplingOptions
from swiftmask.methods.speed_rl import TuningConfig, make_policy, write_policy
from swiftmask.methods.speed_rl.policy import trained_parameters
from swiftmask.models.meissonic import Meissonic
from swiftmask.models.meissonic.text import word_tokenizer

TINY, CLASSES, LORA = "TINY", "CLASSES", "LORA"
"""Stand for the folders of a tiny Meissonic, of a tiny MaskGIT, and of adapters for the first."""

PROMPT = ("--prompt", "a red circle")


@pytest.fixture(scope="session")
def tiny_meissonic(tmp_path_factory: pytest.TempPathFactory, golden_meissonic: Meissonic) -> Path:
    """Images of 8x8 pixels, 4x4 tokens, prompts of at most 8."""
    folder = tmp_path_factory.mktemp("models") / "tiny-meissonic"
    golden_meissonic.save_pretrained(folder, provenance={})
    return folder


@pytest.fixture(scope="session")
def tiny_lora(tmp_path_factory: pytest.TempPathFactory, tiny_meissonic: Path) -> Path:
    """What a Speed-RL run leaves: adapters that change the tokens drawn, tuned for 2 steps."""
    folder, tuning = (
        tmp_path_factory.mktemp("run"),
        TuningConfig(targets=r"transformer\..*to_[qkv]", lora_r=2),
    )
    policy = make_policy(Meissonic.from_pretrained(tiny_meissonic), tuning)
    with torch.no_grad():
        for parameter in trained_parameters(policy).values():
            parameter.copy_(torch.randn_like(parameter))
    write_policy(folder / "policy", policy, tuning=tuning, provenance={}, steps=2)
    return folder


@pytest.fixture
def places(tiny_meissonic: Path, tiny_folder: Path, tiny_lora: Path) -> dict[str, str]:
    return {TINY: str(tiny_meissonic), CLASSES: str(tiny_folder), LORA: str(tiny_lora)}


@pytest.fixture(autouse=True)
def _pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`image.png` and `half.png` (its right half white) of 8x8, `small.png` of 4x4 pixels."""
    monkeypatch.chdir(tmp_path)
    pixels_HW3 = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels_HW3).save("image.png")
    Image.fromarray(pixels_HW3[:4, :4]).save("small.png")
    half_HW = np.zeros((8, 8), np.uint8)
    half_HW[:, 4:] = 255
    Image.fromarray(half_HW).save("half.png")


def generated(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    with pytest.raises(SystemExit) as stop:
        main(["generate", *map(str, arguments), "--json"])
    captured = capsys.readouterr()
    assert stop.value.code == 0, captured.err
    return json.loads(captured.out)


def test_several_images_of_each_prompt(tiny_meissonic: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = ("--prompt", "a red circle", "a blue square", "--num", 2, "--steps", 2)
    summary = generated(capsys, tiny_meissonic, *prompts, "--out", "o")
    assert [entry["file"] for entry in summary["pictures"]] == [
        "a-red-circle-0.png", "a-red-circle-1.png", "a-blue-square-0.png", "a-blue-square-1.png",
    ]  # fmt: skip
    assert "negative_prompt" not in summary["pictures"][0]


def test_names_without_an_option_are_prompts(
    tiny_meissonic: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = generated(capsys, tiny_meissonic, "a red circle", "--steps", 2, "--out", "o")
    assert [entry["what"] for entry in summary["pictures"]] == ["a red circle"]


def test_one_negative_prompt_goes_with_all(tiny_meissonic: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The reference broke on one negative string beside several prompts."""
    arguments = (tiny_meissonic, "--prompt", "a red circle", "a blue square", "--steps", 2, "--out", "o")
    plain = generated(capsys, *arguments)
    summary = generated(capsys, *arguments, "--negative-prompt", "a square")
    assert [entry["negative_prompt"] for entry in summary["pictures"]] == ["a square"] * 2
    assert summary["drawn"] == 2
    names = [entry["file"] for entry in plain["pictures"] + summary["pictures"]]
    assert len(set(names)) == 4, "images with and without it lie side by side"


def test_a_file_says_prompts_negatives_and_seeds(
    tiny_meissonic: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("list.jsonl").write_text(
        '{"prompt": "a circle", "seed": 5}\n{"prompt": "a square", "negative_prompt": "a circle"}\n'
    )
    arguments = ("--prompts", "list.jsonl", "--negative-prompt", "left", "--num", 2, "--steps", 2)
    summary = generated(capsys, tiny_meissonic, *arguments, "--out", "o")
    found = [(entry["what"], entry["seed"], entry["negative_prompt"]) for entry in summary["pictures"]]
    assert found == [
        ("a circle", 5, "left"),
        ("a circle", 6, "left"),
        ("a square", 0, "a circle"),
        ("a square", 1, "a circle"),
    ]


def test_seeds_have_one_source(tiny_meissonic: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("all.csv").write_text("prompt,seed\na circle,5\n")
    Path("some.csv").write_text("prompt,seed\na circle,5\na square,\n")
    for arguments in (("all.csv", "--seeds", 3), ("some.csv", "--seeds", 3), ("all.csv", "--seed", 3)):
        said = refused(capsys, tiny_meissonic, "--prompts", *arguments)
        assert f"{arguments[1]} beside the column seed of {arguments[0]}: leave out one of them" in said
    assert "--seeds beside --seed or --num" in refused(
        capsys, tiny_meissonic, *PROMPT, "--seeds", 3, "--num", 2
    )
    summary = generated(capsys, tiny_meissonic, "--prompts", "some.csv", "--seed", 3, "--steps", 2)
    assert [entry["seed"] for entry in summary["pictures"]] == [5, 3]


def test_comments_of_a_file_are_not_said_beside_a_mistake(
    tiny_meissonic: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("list.txt").write_text("# circles\na red circle left a blue square\n")
    said = refused(capsys, tiny_meissonic, "--prompts", "list.txt")
    assert "list.txt, line 2: prompt of 9 tokens" in said and len(said.splitlines()) == 1


def test_another_size(tiny_meissonic: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = generated(capsys, tiny_meissonic, *PROMPT, "--size", 8, 16, "--steps", 2, "--out", "o")
    assert summary["settings"]["size"] == [8, 16]
    assert Image.open("o/a-red-circle-0.png").size == (16, 8)


def test_tuned_weights_draw_at_the_steps_they_were_tuned_for(
    tiny_meissonic: Path, tiny_lora: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = generated(capsys, tiny_meissonic, *PROMPT, "--speed-rl", tiny_lora, "--flops", "--out", "o")
    assert tuned["settings"]["steps"] == 2
    arguments = (tiny_meissonic, *PROMPT, "--steps", 2, "--flops", "--out", "o")
    said = refused(capsys, *arguments)
    assert (
        f"o holds images generated with other settings (a-red-circle-0.png: speed_rl {tiny_lora} there"
        in said
    )
    base = generated(capsys, *arguments, "--overwrite")
    assert base["drawn"] == 1, "the tuned image was taken for the base's"
    assert base["cost"]["gflop_per_picture"] == tuned["cost"]["gflop_per_picture"], "adapters are folded in"
    pipeline = swiftmask.accelerate(swiftmask.load(tiny_meissonic), speed_rl=tiny_lora)
    asked = {"prompts": ["a red circle"], "seeds": [0]}
    tokens = [p.generate(**asked).trajectory.tokens_BL for p in (pipeline, swiftmask.load(tiny_meissonic))]
    assert not torch.equal(*tokens)


def test_tuned_weights_draw_as_they_were_tuned(tiny_meissonic: Path, tiny_lora: Path, tmp_path: Path) -> None:
    """Unless the pipeline says otherwise; what cannot be read is refused."""
    shutil.copytree(tiny_lora, tmp_path / "lora")
    path = tmp_path / "lora" / "policy" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"sampling": {"temperature": 0.5, "guidance": None}}))
    base = swiftmask.load(tiny_meissonic)
    assert swiftmask.accelerate(base, speed_rl=tmp_path / "lora").sampling.temperature == 0.5
    asked = replace(base, sampling=SamplingOptions(temperature=0.7))
    assert swiftmask.accelerate(asked, speed_rl=tmp_path / "lora").sampling.temperature == 0.7
    for damage, complaint in (
        ({"sampling": {"heat": 1}}, "unknown key sampling.heat"),
        ({"sampling": 3}, "sampling must be"),
        ({"steps": "many"}, "steps must be"),
    ):
        path.write_text(json.dumps(config | damage))
        with pytest.raises(ValueError, match=f"config.json: {complaint}"):
            swiftmask.accelerate(base, speed_rl=tmp_path / "lora")


def test_a_whole_tuned_model_serves_as_well(tiny_meissonic: Path, tiny_lora: Path, tmp_path: Path) -> None:
    base = swiftmask.load(tiny_meissonic)
    adapted = swiftmask.accelerate(base, speed_rl=tiny_lora)
    assert isinstance(adapted.model, Meissonic)
    adapted.model.save_pretrained(tmp_path / "whole", provenance={})
    whole = swiftmask.accelerate(base, speed_rl=tmp_path / "whole")
    assert (adapted.steps, whole.steps) == (2, base.steps)
    asked = {"prompts": ["a red circle"], "steps": 3}
    first, second = (p.generate(**asked).trajectory.tokens_BL for p in (adapted, whole))
    assert torch.equal(first, second)


@pytest.mark.parametrize("model", [TINY, CLASSES])
@pytest.mark.parametrize("start", [("image.png", "half.png"), ("small.png", None)])
def test_what_is_kept_is_kept(
    model: str, start: tuple[str, str | None], places: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Inpainting the right half, and outpainting; both images of a batch keep the same tokens."""
    what = PROMPT if model == TINY else ("3",)
    arguments = ["--init-image", start[0], *(() if start[1] is None else ("--mask", start[1]))]
    summary = generated(
        capsys, places[model], *what, *arguments, "--num", 2, "--steps", 3, "--guidance", 1.5, "--out", "o"
    )
    assert summary["drawn"] == 2
    assert summary["settings"]["init_image"].startswith(start[0])
    pipeline = swiftmask.load(places[model])
    opened = [None if path is None else Image.open(path) for path in start]
    assert opened[0] is not None
    canvas = pipeline.start_canvas(opened[0], opened[1], count=2)
    assert canvas.num_masked == (8 if start[1] else 12)
    asked: dict[str, Any] = {"prompts": ["a red circle"] * 2} if model == TINY else {"labels": [3, 3]}
    result = pipeline.generate(**asked, steps=3, canvas=canvas)
    known_BL = ~canvas.masked_BL
    assert torch.equal(result.trajectory.tokens_BL[known_BL], canvas.tokens_BL[known_BL])
    assert (result.trajectory.decided_at_BL[known_BL] == -1).all()
    assert (result.trajectory.decided_at_BL[canvas.masked_BL] >= 0).all()


def test_inpainting_costs_less_than_drawing_everything(tiny_folder: Path) -> None:
    pipeline = swiftmask.load(tiny_folder)
    some, every = (pipeline.flops(pipeline.schedule(4, num_masked=count)) for count in (8, 16))
    assert some < every, "the head runs at masked positions alone"


def test_a_changed_start_image_is_another_setting(
    tiny_meissonic: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (tiny_meissonic, *PROMPT, "--init-image", "image.png", "--mask", "half.png", "--steps", 2)
    assert generated(capsys, *arguments, "--out", "o")["drawn"] == 1
    assert generated(capsys, *arguments, "--out", "o")["drawn"] == 0
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save("image.png")
    said = refused(capsys, *arguments, "--out", "o")
    assert "o holds images generated with other settings (a-red-circle-0.png: init_image image.png" in said
    assert generated(capsys, *arguments, "--out", "o", "--overwrite")["drawn"] == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([TINY], "nothing to generate"),
        ([TINY, "--classes", "0"], "takes prompts, not classes: leave out --classes"),
        ([TINY, "--prompt", " "], "empty --prompt"),
        ([TINY, "--prompt", "a a a a a a a"], "prompt of 9 tokens, expected at most 8"),
        ([TINY, "--prompt", "a green circle"], "unknown word 'green'"),
        ([TINY, "--prompts", "nowhere.txt"], "no such file of prompts: nowhere.txt"),
        ([TINY, *PROMPT, "--negative-prompt", "a", "b"], "one for each of 1 prompts, got 2"),
        ([TINY, *PROMPT, "--negative-prompt", "a", "--guidance", "1"], "needs prompts and guidance"),
        ([TINY, *PROMPT, "--negative-prompt", "a a a a a a a a"], "prompt of 10 tokens"),
        ([CLASSES, "--classes", "0", "--negative-prompt", "a"], "needs prompts and guidance, got classes"),
        ([CLASSES, "0", "--negative-prompt", "a"], "takes classes, not prompts"),
        ([CLASSES, "--prompts", "list.txt"], "takes classes, not prompts"),
        ([TINY, *PROMPT, "--size", "10"], "multiples of 4, got 10x10: take 8x8"),
        ([TINY, *PROMPT, "--size", "8", "8", "8"], "one number, or a height and a width, got 3"),
        ([TINY, *PROMPT, "--size", "large"], "--size"),
        ([CLASSES, "0", "--size", "16"], "generates images of 8x8 only: leave out the size"),
        ([TINY, *PROMPT, "--input-image", "image.png"], "did you mean --init-image"),
        ([TINY, *PROMPT, "--mask", "half.png"], "give both"),
        ([TINY, *PROMPT, "--init-image", "image.png"], "nothing is left to generate"),
        ([TINY, *PROMPT, "--init-image", "image.png", "--mask", "small.png"], "make them of one size"),
        ([TINY, *PROMPT, "--init-image", "nowhere.png"], "no such image file: nowhere.png"),
        ([TINY, *PROMPT, "--init-image", "list.txt"], "cannot read image list.txt"),
        ([TINY, *PROMPT, "--size", "4", "--init-image", "image.png"], "larger than the model's, 4x4"),
        (
            [TINY, *PROMPT, "--init-image", "image.png", "--mask", "half.png", "--steps", "9"],
            "8 masked tokens: take fewer steps",
        ),
        ([TINY, *PROMPT, "--speed-rl", "./nowhere"], "no such Speed-RL result"),
        ([TINY, *PROMPT, "--speed-rl", "auto"], "has no speed-rl of its own: name one, or its folder"),
        ([TINY, *PROMPT, "--speed-rl", CLASSES], "was tuned from another model than tiny-meissonic"),
        ([CLASSES, "0", "--speed-rl", LORA], "tuned from meissonic, and this is another model"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    arguments: list[str], complaint: str, places: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("list.txt").write_text("a red circle\n")
    before = sorted(Path().iterdir())
    with pytest.raises(SystemExit) as stop:
        main(["generate", *[places.get(argument, argument) for argument in arguments]])
    said = capsys.readouterr().err
    assert stop.value.code == 2, said
    assert len(said.strip().splitlines()) == 1, said
    assert complaint in said
    assert sorted(Path().iterdir()) == before


def test_clips_own_limit() -> None:
    assert word_tokenizer(["a"], length=77)(["a " * 75]).shape == (1, 77)
    with pytest.raises(ValueError, match="prompt of 78 tokens, expected at most 77"):
        word_tokenizer(["a"], length=77)(["a " * 76])


def test_every_job_has_a_file_of_its_own() -> None:
    jobs = [Job("a b", 0), Job("a-b", 0), Job("a b", 1), Job("a b", 0, "c"), Job("a b", 0, "d")]
    assert jobs[0].file_name == "a-b-0.png"
    assert len({job.file_name for job in jobs}) == 5


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["generate", *map(str, arguments)])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_a_table_says_prompts_negatives_and_seeds(
    tiny_meissonic: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("list.CSV").write_text("seed;prompt;negative_prompt\n5;a circle;\n;a square;a circle\n", "utf-8-sig")
    summary = generated(capsys, tiny_meissonic, "--prompts", "list.CSV", "--steps", 2, "--out", "o")
    found = [(entry["what"], entry["seed"], entry.get("negative_prompt")) for entry in summary["pictures"]]
    assert found == [("a circle", 5, None), ("a square", 0, "a circle")]


def test_long_prompts_are_named_at_once_or_cut(
    tiny_meissonic: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prompts of at most 8 tokens, start and end among them."""
    long = "a red circle left a blue square"
    Path("list.txt").write_text(f"\na circle\n\n{long}\na {long}\n")
    arguments = (tiny_meissonic, "--prompts", "list.txt", "--steps", 2, "--out", "o")
    said = refused(capsys, *arguments)
    assert "list.txt: 2 of 3 cannot be generated: line 4: prompt of 9 tokens" in said
    assert "line 5: prompt of 10 tokens" in said and "--truncate" in said
    assert not Path("o").exists()
    Path("one.csv").write_text(f"prompt,seed\na circle,1\n{long},2\n")
    said = refused(capsys, tiny_meissonic, "--prompts", "one.csv", "--steps", 2, "--out", "o")
    assert said.startswith("swiftmask: one.csv, line 3: prompt of 9 tokens")
    summary = generated(capsys, *arguments, "--truncate")
    assert [entry["what"] for entry in summary["pictures"]] == [
        "a circle",
        "a red circle left a blue",
        "a a red circle left a",
    ]


def test_a_start_image_may_be_of_any_kind(tiny_meissonic: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A transparent image on white and its opaque twin give the same pixels; a mask of 0 and 1 is read."""
    clear = np.array(Image.open("image.png").convert("RGBA"))
    clear[:, :2, 3] = 0
    Image.fromarray(clear).save("clear.png")
    clear[:, :2] = 255
    Image.fromarray(clear[..., :3]).save("white.png")
    Image.fromarray(np.array(Image.open("half.png")) // 255).save("ones.png")
    for image, mask in (("clear", "ones"), ("white", "half")):
        start = ("--init-image", f"{image}.png", "--mask", f"{mask}.png", "--steps", 2, "--out", image)
        generated(capsys, tiny_meissonic, *PROMPT, *start)
    drawn = [np.array(Image.open(f"{name}/a-red-circle-0.png")) for name in ("clear", "white")]
    assert np.array_equal(drawn[0], drawn[1])
    said = refused(
        capsys,
        tiny_meissonic,
        *PROMPT,
        "--init-image",
        "clear.png",
        "--mask",
        "ones.png",
        "--background",
        "wite",
    )
    assert "background 'wite' is no colour" in said


def test_a_large_image_is_no_warning_of_pillows(
    tiny_meissonic: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow warns above its limit and refuses above twice that; a warning would be two lines of its own."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    start = (tiny_meissonic, *PROMPT, "--init-image", "image.png", "--mask", "half.png", "--steps", 2)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        generated(capsys, *start, "--out", "o")
    assert not said
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    assert "cannot read image image.png (more than" in refused(capsys, *start, "--out", "p")
