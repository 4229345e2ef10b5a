"""A user's mistake is one line on stderr and exit code 2, never a traceback."""

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from swiftmask.cli import main
from swiftmask.cli.errors import with_left_out
from swiftmask.cli.words import flatten
from swiftmask.models.mar import MAR
from swiftmask.models.maskgit import MaskGIT

TINY = "TINY"
"""Stands for the tiny model's folder."""


def failed(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 2) -> str:
    """The one line a failing command says."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    said = capsys.readouterr().err
    assert stop.value.code == code, said
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) == 1, said
    return said


def failed_last(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 2) -> str:
    """The last line of a command that fails after it told what it is about to do."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    said = capsys.readouterr().err
    assert stop.value.code == code, said
    assert "Traceback" not in said
    return said.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["generat"], "did you mean generate"),
        (["bench"], "MODEL is missing; see swiftmask bench --help"),
        (["nonsense"], "swiftmask --help"),
        (["generate", "maskgit-scene", "0"], "unknown model 'maskgit-scene'"),
        (["generate", "./nowhere", "0"], "no such model"),
        (["generate", TINY, "0", "--stepss", "3"], "did you mean --steps"),
        (
            ["generate", TINY, "0", "--steps", "many"],
            "--steps must be a whole number between 1 and 65_536, got 'many'; see",
        ),
        (
            ["generate", TINY, "0", "--guidance", "x"],
            "--guidance must be a number between 1 and 100, got",
        ),
        (["generate", TINY, "0", "--size", "8", "x"], "--size must be whole numbers between 1 and 16_384"),
        (["generate", TINY, "0", "--num-images", "x"], "--num-images must be a whole number between 1 and"),
        (["generate", TINY, "0", "--caching", "reused"], "--caching must be 'reuse' or 'extrapolation-1' or"),
        (["generate", TINY, "0", "--seed"], "--seed needs a value: a whole number between 0 and 2**64 - 1"),
        (
            ["generate", TINY, "--prompt", "a", "--prompt", "b"],
            "--prompt is given twice: give all its",
        ),
        (["generate", TINY, "0", "--num", "2", "--num-images=3"], "--num-images is given twice"),
        (["generate", TINY, "--json", "false"], "--json takes no value, got 'false'"),
        (["generate", TINY, "--json=0"], "--json takes no value, got '0'"),
        (["generate"], "MODEL is missing; see swiftmask generate --help"),
        (["compare"], "IMAGES, --reference, --extractor are missing"),
        (["compare", ".", "--extractor", "scenes"], "compare: --reference is missing"),
        (["train", ""], "unknown recipe ''"),
        (["generate", TINY], "nothing to generate"),
        (["generate", TINY, "7"], "unknown class '7'"),
        (["generate", TINY, "cat"], "unknown class 'cat'"),
        (["generate", TINY, "--prompt", "a red circle"], "takes classes, not prompts"),
        (["generate", TINY, "0", "--prompt", "a"], "not both"),
        (
            ["generate", TINY, "0", "--steps", "0"],
            "--steps must be a whole number between 1 and 65_536, got 0",
        ),
        (["generate", TINY, "0", "--steps", "17"], "16 masked tokens"),
        (["generate", TINY, "0", "--full-steps", "2"], "needs --shortcut or --caching"),
        (["generate", TINY, "0", "--steps", "4", "--caching", "reuse", "--full-steps", "5"], "got 5"),
        (["generate", TINY, "0", "--caching", "reuse", "--full-steps", "0"], "step 0 is always full"),
        (
            ["generate", TINY, "0", "--shortcut", "auto"],
            "tiny has no shortcut of its own: name one, or its folder",
        ),
        (["generate", TINY, "0", "--shortcut", "./nowhere.pth"], "no such shortcut"),
        (["generate", TINY, "0", "--num", "0"], "--num must be a whole number between 1 and"),
        (
            ["generate", TINY, "0", "--seeds", "-1"],
            "--seeds must be whole numbers between 0 and 2**64 - 1, got (-1,)",
        ),
        (["generate", TINY, "0", "--dtype", "float12"], "unknown dtype"),
        (["generate", TINY, "0", "--device", "toaster"], "unknown device"),
        (["train", "maskgit-scene"], "did you mean maskgit-scenes"),
        (["train", "maskgit-scenes", "training.num_step=3"], "did you mean training.num_steps"),
        (["train", "maskgit-scenes", "training.num_steps=few"], "expects int, got 'few'"),
        (["train", "maskgit-scenes", "faster"], "key=value"),
        (["convert", "nowhere.pth", "--out", "x"], "no such"),
        (["convert", "nowhere.pth", "--codec", "nowhere.ckpt", "--out", "x"], "no such"),
        (["verify", "./nowhere"], "no such folder"),
    ],
)
def test_one_line_and_exit_code_2(
    arguments: list[str],
    complaint: str,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    said = failed(capsys, *[str(tiny_folder) if argument == TINY else argument for argument in arguments])
    assert complaint in said
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_damaged_weights(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = shutil.copytree(tiny_folder, tmp_path / "broken")
    whole = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "truncated" in failed(capsys, "generate", broken, "0", "--out", tmp_path / "out")
    (broken / "model.safetensors").unlink()
    said = failed(capsys, "generate", broken, "0", "--out", tmp_path / "out")
    assert f"no weights in {broken}: expected model.safetensors" in said
    (broken / "config.json").write_text("{")
    assert "damaged" in failed(capsys, "generate", broken, "0", "--out", tmp_path / "out")


def test_weights_that_overflow(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They load, as every number is finite; the decode shows it, and no image is written."""
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    save_file({key: value * 1e30 for key, value in weights.items()}, folder / "model.safetensors")
    said = failed_last(capsys, "generate", folder, "0", "--out", tmp_path / "out")
    assert "got NaN or infinity in a decode in float32: the weights are damaged" in said
    assert not list((tmp_path / "out").glob("*.png"))


def test_wrong_architecture(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, codec = tmp_path / "other.pth", tmp_path / "last.ckpt"
    torch.save({"conv1.weight": torch.zeros(3, 3)}, path)
    torch.save({"state_dict": {"conv1.weight": torch.zeros(3, 3)}}, codec)
    said = failed(capsys, "convert", path, "--codec", codec, "--out", tmp_path / "out")
    assert "is of no model that is known here: it has conv1.weight" in said
    other = shutil.copytree(tiny_folder, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["transformer"]["depth"] = 3
    (other / "config.json").write_text(json.dumps(config))
    assert "missing" in failed(capsys, "generate", other, "0", "--out", tmp_path / "out")


def test_shortcut_of_another_base(
    tiny_folder: Path, tiny_shortcut_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(tiny_shortcut_folder, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["base_model"]["grid"] = [9, 9]
    (other / "config.json").write_text(json.dumps(config))
    said = failed(capsys, "generate", tiny_folder, "0", "--shortcut", other, "--out", tmp_path / "out")
    assert "does not fit this model" in said


TINY_MAR = "TINY-MAR"
"""Stands for the tiny MAR's folder."""

_ONE_SEED = ("--images", "4", "--seeds", "1")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["generate", TINY_MAR, "48"], "unknown class '48': give a number from 0 to 47"),
        (["generate", TINY_MAR, "0", "--marval", "./nowhere"], "no such MARVAL student"),
        (["generate", TINY_MAR, "0", "--marval", "mar-scenes-marva"], "unknown MARVAL student"),
        (
            ["generate", TINY_MAR, "0", "--marval", f"{TINY_MAR}-marval", "--guidance", "2"],
            "leave out guidance",
        ),
        (["generate", TINY_MAR, "0", "--denoising-steps", "1"], "at least 2 denoising steps, got 1: use"),
        (["generate", TINY_MAR, "0", "--denoising-steps", "3", "2", "1"], "one number or two, got 3"),
        (["generate", TINY, "0", "--marval", f"{TINY_MAR}-marval"], "no diffusion head for marval"),
        (["generate", TINY, "0", "--denoising-steps", "10"], "leave out denoising_steps"),
        (
            ["generate", TINY, "0", "--temperature", "0"],
            "temperature must be a number between 0.001 and 100, got 0",
        ),
        (
            ["generate", TINY, "0", "--choice-temperature", "nan"],
            "--choice-temperature must be a number between 0 and 100, got nan",
        ),
        (
            ["generate", TINY_MAR, "0", "--temperature", "-1"],
            "--temperature must be a number between 0 and 100, got -1",
        ),
        (["bench", TINY_MAR, *_ONE_SEED, "--denoising-steps", "1"], "take --ddim-steps 1"),
        (
            ["bench", TINY_MAR, *_ONE_SEED, "--steps", "4", "--disa", "50"],
            "FIRST:LAST, such as 50:5",
        ),
        (["bench", f"{TINY_MAR}-marval", *_ONE_SEED], "holds a marval: pass it to"),
        (["train", "mar-scenes-marval", "part=body"], "part expects network or head, got 'body'"),
    ],
)
def test_mistakes_about_mar(
    arguments: list[str],
    complaint: str,
    tiny_folder: Path,
    tiny_mar_scenes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {
        TINY: str(tiny_folder),
        TINY_MAR: str(tiny_mar_scenes),
        f"{TINY_MAR}-marval": f"{tiny_mar_scenes}-marval",
    }
    assert complaint in failed(capsys, *[places.get(argument, argument) for argument in arguments])


def test_damaged_mar(tiny_mar_scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for source, arguments in (
        (tiny_mar_scenes, ("generate", tmp_path / "tiny-mar", "0")),
        (
            tiny_mar_scenes.with_name("tiny-mar-marval"),
            ("generate", tiny_mar_scenes, "0", "--marval", tmp_path / "tiny-mar-marval"),
        ),
    ):
        weights = shutil.copytree(source, tmp_path / source.name) / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:2000])
        said = failed(capsys, *arguments, "--out", tmp_path / "out")
        assert f"{weights} is truncated" in said


def test_student_of_another_teacher(
    tiny_mar_scenes: Path, tmp_path: Path, golden_mar: MAR, capsys: pytest.CaptureFixture[str]
) -> None:
    golden_mar.save_pretrained(tmp_path / "other", provenance={})
    said = failed(capsys, "generate", tmp_path / "other", "0", "--marval", f"{tiny_mar_scenes}-marval")
    assert "was made from tiny-mar, and this teacher is another model" in said


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["mar-scenes-marval", "model=./nowhere"], "no such model file or folder: ./nowhere"),
        (["mar-scenes-marval-rl", "model=./nowhere"], "no such model file or folder: ./nowhere"),
        (["marval", "data=scenes:classes"], "model is not set"),
        (
            ["marval", "data=scenes:classes", "model=nowhere.pth"],
            "no such model file or folder: nowhere.pth",
        ),
        (
            ["marval", "data=scenes:classes", "model=broken.pth", "codec=kl16.ckpt"],
            "broken.pth is truncated",
        ),
        (["marval"], "data is not set"),
    ],
)
def test_wrong_files_for_a_recipe(
    arguments: list[str],
    complaint: str,
    golden_maskgit: MaskGIT,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": golden_maskgit.codec.state_dict()}, "vqgan.ckpt")
    Path("broken.pth").write_bytes(Path("vqgan.ckpt").read_bytes()[:1000])
    assert complaint in failed_last(capsys, "train", *arguments)


def test_codec_of_another_mar(
    tiny_mar_scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(tiny_mar_scenes, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["codec"]["resolution"] = 16
    (other / "config.json").write_text(json.dumps(config))
    assert "this codec does not fit this MAR" in failed(capsys, "generate", other, "0")


def test_unreadable_image_and_missing_reward(
    tiny_mar_scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for label in range(48):
        (tmp_path / "images" / f"{label:02d}").mkdir(parents=True)
        (tmp_path / "images" / f"{label:02d}" / "a.png").write_bytes(b"no picture")
    cache = ("train", "marval", f"model={tiny_mar_scenes}", f"data={tmp_path}/images")
    said = failed_last(capsys, *cache, "--out", tmp_path / "cache")
    assert "a.png" in said
    assert "max_unreadable=" in said
    tune = ("train", "mar-scenes-marval-rl", f"model={tiny_mar_scenes}", "reward=scenes-reward=./nowhere")
    said = failed_last(capsys, *tune, f"student={tiny_mar_scenes}-marval", "--out", tmp_path / "tune")
    assert "no weights of scenes-reward at ./nowhere" in said


def test_disk_full(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: object, path: Path, **_: object) -> None:
        path.write_bytes(b"half a pic")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("PIL.Image.Image.save", full)
    said = failed_last(capsys, "generate", tiny_folder, "0", "--steps", "2", "--out", tmp_path / "out")
    assert "no space left on device" in said
    assert not (tmp_path / "out").exists(), "nothing was written"


def test_out_is_a_file(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x")
    assert "is a file" in failed(capsys, "generate", tiny_folder, "0", "--out", tmp_path / "file")
    assert "is a file" in failed(capsys, "train", "maskgit-scenes", "--out", tmp_path / "file")


def test_interruption_leaves_whole_files_only(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from swiftmask.cli.output_folder import OutputFolder

    saved = []

    def interrupted(*arguments: object) -> None:
        if saved:
            raise KeyboardInterrupt
        saved.append(arguments)
        original(*arguments)  # type: ignore[arg-type]

    original = OutputFolder.save
    monkeypatch.setattr(OutputFolder, "save", interrupted)
    said = failed_last(capsys, "generate", tiny_folder, "0", "1", "--steps", "2", "--out", tmp_path, code=130)
    assert "interrupted" in said
    assert {path.name for path in tmp_path.iterdir()} - {".lock"} == {"0-0.png"}


def test_a_defect_of_ours_is_no_traceback_either(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("oh\nno")

    monkeypatch.setattr("swiftmask.api.load", broken)
    with pytest.raises(SystemExit) as stop:
        main(["generate", str(tiny_folder), "0"])
    said = capsys.readouterr().err
    assert stop.value.code == 1
    assert "RuntimeError: oh no" in said
    assert "Traceback" not in said
    with pytest.raises(SystemExit):
        main(["generate", str(tiny_folder), "0", "--debug"])
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("rule", ["────", "----"])
def test_flattened_box(rule: str) -> None:
    side = "│" if rule == "────" else "|"
    said = [
        "Unrecognized options: --a",
        rule,
        "Perhaps you meant:",
        "    --b INT",
        "        Text.",
        rule,
        "More",
    ]
    box = [f"{rule} Oops {rule}", *(f"{side} {line} {side}" for line in said), rule]
    assert flatten("\n".join(box)) == "Unrecognized options: --a (did you mean --b?)"
    assert flatten("\n".join([box[0], rule, *box[1:]])) == "Unrecognized options: --a (did you mean --b?)"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["a", "--shortcut", "--full-steps", "6"], ["a", "--shortcut", "auto", "--full-steps", "6"]),
        (["a", "--marval"], ["a", "--marval", "auto"]),
        (["a", "--lora", "folder", "--json"], ["a", "--lora", "folder", "--json"]),
    ],
)
def test_an_accelerator_that_is_not_named_is_the_models_own(given: list[str], meant: list[str]) -> None:
    assert with_left_out(given) == meant
