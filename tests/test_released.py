"""What a user with released files types first, on the released layouts at toy width."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import swiftmask
from swiftmask.cli import main
from swiftmask.models.meissonic import Meissonic
from swiftmask.registry import family_of, model_names
from tests.released_layouts import write_dimoo, write_mar, write_maskgit, write_meissonic, write_shortcuts

LAION = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def typed(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[dict[str, Any], str]:
    """What a command printed as JSON, and what it said on stderr."""
    with pytest.raises(SystemExit) as stop:
        main([*map(str, words), "--json"])
    printed = capsys.readouterr()
    assert stop.value.code == 0, printed.err
    return json.loads(printed.out), printed.err


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line that a command is refused with."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    said = capsys.readouterr().err
    assert stop.value.code == 2, said
    assert len(said.splitlines()) == 1
    return said


def test_maskgit_file_and_codec(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transformer, codec = write_maskgit(here / "files")
    shutil.move(transformer, here / "any-name.pth")
    shutil.move(codec, here / "last.ckpt")
    found, said = typed(capsys, "generate", "any-name.pth", "--codec", "last.ckpt", 207)
    assert found["settings"]["steps"] == 8
    assert (here / "pictures" / "207-0.png").is_file()
    assert "any-name on cpu in float32" in said


def test_maskgit_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder with both, whatever they are called, and a shortcut among them."""
    transformer, codec = write_maskgit(here / "maskgit-512", grid=4)
    transformer.rename(transformer.with_name("weights.pth"))
    codec.rename(codec.with_name("vqgan.ckpt"))
    shortcut, _ = write_shortcuts(here / "maskgit-512")
    found, _ = typed(capsys, "generate", "maskgit-512/", 207, "--shortcut", shortcut, "--full-steps", 5)
    assert found["settings"]["steps"] == 15
    assert found["cost"]["calls_per_picture"]["shortcut"] == 10


def test_mar_converted_then_drawn(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network, _ = write_mar(here)
    found, _ = typed(capsys, "convert", network, "--codec", "kl16.ckpt", "--out", "mar-b")
    assert found["network"]["encoder_heads"] == 12
    averaged = torch.load(network, weights_only=False)["model_ema"]
    kept = load_file(here / "mar-b" / "model.safetensors")
    assert torch.equal(kept["network.mask_token"], averaged["mask_token"])
    fast = ("--denoising-steps", 2)
    drawn, _ = typed(capsys, "generate", "mar-b", 207, *fast)
    assert drawn["settings"]["steps"] == 4  # 64, or one a token
    again, _ = typed(capsys, "generate", network, "--codec", "kl16.ckpt", 207, *fast, "--out", "again")
    assert again["settings"]["weights"] == drawn["settings"]["weights"]
    assert json.loads((here / "mar-b" / "config.json").read_text())["steps"] == 64


def test_meissonic_with_another_text_encoder(
    here: Path,
    golden_meissonic: Meissonic,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = write_meissonic(here / "MeissonFlow" / "Meissonic", golden_meissonic)
    other = shutil.copytree(folder / "text_encoder", here / "clip")
    state = load_file(other / "model.safetensors")
    (other / "model.safetensors").unlink()
    torch.save({key: 2 * value for key, value in state.items()}, other / "pytorch_model.bin")
    asked: list[object] = []

    def snapshot(repo_id: str, *, allow_patterns: list[str], **settings: object) -> str:
        asked.append((repo_id, allow_patterns[1]))
        return str(other)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    words = ("generate", "MeissonFlow/Meissonic", "a red circle", "--size", 32, "--steps", 2)
    own, _ = typed(capsys, *words)
    by_folder, _ = typed(capsys, *words, "--text-encoder", "clip", "--out", "b")
    by_name, _ = typed(capsys, *words, "--text-encoder", LAION, "--out", "c")
    assert asked == [(LAION, "model.safetensors"), (LAION, "pytorch_model.bin")]
    assert own["settings"]["weights"] != by_folder["settings"]["weights"] == by_name["settings"]["weights"]
    typed(capsys, "convert", "MeissonFlow/Meissonic", "--text-encoder", "clip", "--out", "converted")
    converted, _ = typed(
        capsys, "generate", "converted", "a red circle", "--size", 32, "--steps", 2, "--out", "d"
    )
    assert converted["settings"]["weights"] == by_folder["settings"]["weights"]
    assert swiftmask.load("MeissonFlow/Meissonic").steps == 64  # the model of two scales is of 1024 pixels


def test_dimoo_folder_shortcut_and_conversion(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_dimoo(here / "Alpha-VLLM" / "Lumina-DiMOO")
    _, shortcut = write_shortcuts(here)
    assert swiftmask.load("Alpha-VLLM/Lumina-DiMOO").steps == 64
    words = ("generate", "Alpha-VLLM/Lumina-DiMOO", "image", "--size", 256)
    drawn, said = typed(capsys, *words, "--steps", 3)
    assert drawn["settings"]["dtype"] == "bfloat16"
    assert "Lumina-DiMOO on cpu in bfloat16" in said
    fast, _ = typed(capsys, *words, "--steps", 3, "--shortcut", shortcut, "--full-steps", 2, "--out", "fast")
    assert fast["cost"]["calls_per_picture"]["shortcut"] == 1
    typed(capsys, "convert", "Alpha-VLLM/Lumina-DiMOO", "--out", "dimoo")
    kept = load_file(here / "dimoo" / "model.safetensors")
    assert kept["backbone.model.transformer.wte.weight"].dtype == torch.bfloat16
    again, _ = typed(capsys, "generate", "dimoo", "image", "--size", 256, "--steps", 3, "--out", "again")
    assert again["settings"]["dtype"] == "bfloat16"
    converted = ("convert", shortcut, "--base", "dimoo", "--out", "dimoo-shortcut")
    assert typed(capsys, *converted)[0]["shortcut"]["mlp_width"] == 12


def test_what_is_no_whole_model_says_what_it_is(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    maskgit, vqgan = write_maskgit(here / "maskgit")
    mar, kl = write_mar(here / "mar")
    of_maskgit, of_dimoo = write_shortcuts(here / "shortcuts")
    write_dimoo(here / "dimoo")
    for words, complaints in (
        ((maskgit,), ("a MaskGIT transformer", "codec='VQGAN/last.ckpt'", "--codec")),
        ((mar,), ("a MAR network", "codec='kl16.ckpt'")),
        ((vqgan,), ("VQGAN, the tokenizer of MaskGIT", "as its codec")),
        ((kl,), ("KL autoencoder, the tokenizer of MAR", "as its codec")),
        ((maskgit, "--codec", kl), ("KL autoencoder", "expected a taming VQGAN")),
        ((mar, "--codec", vqgan), ("VQGAN", "expected a KL autoencoder")),
        ((mar, "--codec", "nowhere.ckpt"), ("no such weights file: nowhere.ckpt",)),
        ((of_maskgit,), ("a MIGM shortcut for MaskGIT", "--shortcut")),
        ((of_dimoo,), ("a MIGM shortcut for Lumina-DiMOO", "--shortcut")),
        (("shortcuts",), ("MIGM shortcut",)),
        (("dimoo/model-1.safetensors",), ("a shard of Lumina-DiMOO", "load the whole folder")),
        (("dimoo/vqvae/diffusion_pytorch_model.safetensors",), ("VQModel", "load the whole folder")),
        (
            ("maskgit-scenes", "--codec", vqgan),
            ("codec is for a released mar or maskgit, not for a converted",),
        ),
        (("dimoo", "--text-encoder", "dimoo"), ("text_encoder is for a released meissonic",)),
        (("mar", "--codec", kl, "--text-encoder", "mar"), ("text_encoder is for a released meissonic",)),
        (("maskgit-scenes", "--shortcut", maskgit), ("a MaskGIT transformer", "no shortcut")),
    ):
        for command in ("generate", "convert"):
            last = (0,) if command == "generate" else ("--out", "out")
            if command == "convert" and "--shortcut" in words:
                continue
            said = refused(capsys, command, *words, *last)
            assert all(complaint in said for complaint in complaints), said
    assert not (here / "out").exists()
    assert not (here / "pictures").exists()


def test_a_folder_without_a_model_is_told_every_layout(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "empty").mkdir()
    said = refused(capsys, "generate", "empty", 207)
    assert "config.json with model.safetensors" in said
    assert all(family_of(name).layout in said for name in model_names())


def test_several_models_or_codecs_in_a_folder(here: Path) -> None:
    write_maskgit(here / "both")
    transformer, codec = write_maskgit(here / "both", grid=4)
    with pytest.raises(ValueError, match=r"several models: load .*_256\.pth or .*_64\.pth with its codec"):
        swiftmask.load("both")
    (here / "both" / "MaskGIT" / "MaskGIT_ImageNet_256.pth").unlink()
    other = shutil.copy(codec, codec.with_name("other.ckpt"))
    with pytest.raises(ValueError, match="several codecs"):
        swiftmask.load("both")
    assert swiftmask.load("both", codec=other).steps == 15
    assert swiftmask.load(transformer, codec=other).name == "MaskGIT_ImageNet_64"


def test_mar_mirror_in_safetensors_under_training_names(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    network, codec = write_mar(here / "mar")
    averaged = torch.load(network, weights_only=False)["model_ema"]
    save_file({f"module.{key}": value for key, value in averaged.items()}, here / "mar-base.safetensors")
    model: Any = swiftmask.load("mar-base.safetensors", codec=codec).model
    assert torch.equal(model.network.mask_token, averaged["mask_token"])
    assert sum("dropped" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("name", ["weights.pth", "model.safetensors"])
def test_git_lfs_pointers(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "cloned").mkdir()
    (here / "cloned" / name).write_text("version https://git-lfs.github.com/spec/v1\nsize 2120000000\n")
    for source in ("cloned", f"cloned/{name}"):
        assert "is a Git-LFS pointer" in refused(capsys, "generate", source, 207)


def test_a_file_of_nothing_known(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"a": torch.ones(2)}, here / "a.pth")
    said = refused(capsys, "generate", "a.pth", 207)
    assert "a.pth is of no model that is known here: it has a" in said


@pytest.mark.parametrize("device", ["meta", "gpu", "cuda:99", "xpu"])
def test_devices_that_are_not_there(
    device: str, here: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "device" in refused(capsys, "generate", tiny_folder, 0, "--device", device)


def test_auto_takes_a_gpu_of_cuda_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from swiftmask.api import device_named

    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_named("auto") == torch.device("cpu")
    assert device_named("mps") == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_named("auto") == torch.device("cuda")
