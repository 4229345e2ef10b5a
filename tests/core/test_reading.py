"""One weights file at a time: what is dropped from keys, what is preferred, and what is no weights file."""

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from swiftmask.core.reading import read_shapes, read_tensors
from swiftmask.core.settings import read_json

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_what_training_puts_in_front_of_keys_is_dropped_and_said_once(
    prefix: str, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / name
    wrapped = {prefix + key: value for key, value in WEIGHTS.items()}
    save_file(wrapped, path) if name.endswith("safetensors") else torch.save({"state_dict": wrapped}, path)
    with caplog.at_level(logging.WARNING):
        assert read_shapes(path).keys() == WEIGHTS.keys()
        assert torch.equal(read_tensors(path)["a.weight"], WEIGHTS["a.weight"])
    assert len(caplog.records) == 1
    assert str(path) in caplog.text


def test_a_module_of_that_name_is_no_prefix(tmp_path: Path) -> None:
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "a.pth")
    assert list(read_tensors(tmp_path / "a.pth")) == ["module.a", "b"]


def test_averaged_weights_come_first(tmp_path: Path) -> None:
    averaged = {key: value + 1 for key, value in WEIGHTS.items()}
    torch.save({"model": WEIGHTS, "model_ema": averaged, "epoch": 3}, tmp_path / "a.pth")
    assert torch.equal(read_tensors(tmp_path / "a.pth")["b"], averaged["b"])


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_shapes_and_dtypes_without_numbers(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    save_file(WEIGHTS, path) if name.endswith("safetensors") else torch.save(WEIGHTS, path)
    found = read_shapes(path)
    assert {key: (value.shape, value.dtype, value.is_meta) for key, value in found.items()} == {
        key: (value.shape, value.dtype, True) for key, value in WEIGHTS.items()
    }


@pytest.mark.parametrize("name", ["a.pth", "a.ckpt", "a.safetensors", "config.json"])
def test_a_git_lfs_pointer_is_called_that(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 2120000000\n")
    for read in (read_tensors, read_shapes, lambda path: read_json(path, expected="a config")):
        with pytest.raises(ValueError, match=f"{name} is a Git-LFS pointer.*git lfs pull"):
            read(path)


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, "\udcff", ""])
def test_damaged_json(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match="config.json is damaged"):
        read_json(path, expected="a config")
