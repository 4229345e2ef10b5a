"""Model folders of several files: written in parts, read tensor by tensor, never mixed with older ones."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from swiftmask.core import files
from swiftmask.core.reading import read_tensors


class Two(nn.Module):
    """Three tensors of 24, 12 and 8 bytes in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(3, 4))
        self.b = nn.Parameter(torch.randn(6))
        self.c = nn.Parameter(torch.randn(4))


def write(
    folder: Path, state: dict[str, Tensor], shard_bytes: int, dtype: torch.dtype = torch.bfloat16
) -> None:
    files.write_folder(
        folder, state, config={"n": len(state)}, provenance={}, dtype=dtype, shard_bytes=shard_bytes
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("shard_bytes", "num_shards"), [(1000, 1), (44, 1), (43, 2), (20, 2), (1, 3)])
def test_shards_are_filled_up_and_read_back(shard_bytes: int, num_shards: int, tmp_path: Path) -> None:
    model, again = Two(), Two()
    write(tmp_path, model.state_dict(), shard_bytes)
    found = files.weight_files(tmp_path)
    assert len(set(found.values())) == num_shards
    with torch.device("meta"):
        files.load_strict(Two(), files.headers(found), source="folder")
    files.fill(again, found)
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value.bfloat16().float())


BAD_NUMBERS = {
    "NaN": torch.tensor([1.0, torch.nan, 0, 0, 0, 0]),
    "infinite": torch.tensor([1.0, -torch.inf, 0, 0, 0, 0]),
    "int32": torch.arange(6, dtype=torch.int32),
    "complex64": torch.ones(6, dtype=torch.complex64),
    "float8_e4m3fn": torch.ones(6).to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("kind", BAD_NUMBERS)
def test_what_are_no_weights_is_refused_by_every_loader(kind: str, tmp_path: Path) -> None:
    model = Two()
    state = {**model.state_dict(), "b": BAD_NUMBERS[kind]}
    path = tmp_path / "model.safetensors"
    files.save_file(state, path)
    found = files.weight_files(tmp_path)
    with torch.device("meta"):
        on_meta = Two()
    loaders: list[Callable[[], object]] = [
        lambda: files.load_strict(model, read_tensors(path), source=str(path)),
        lambda: files.load_strict(on_meta, read_tensors(path), source=str(path)),
        lambda: files.fill(model, found),
    ]
    if kind not in ("NaN", "infinite"):  # told by the header alone, before memory is taken
        loaders.append(lambda: files.load_strict(on_meta, files.headers(found), source=str(path)))
    for load in loaders:
        with pytest.raises(ValueError, match=f"model.safetensors: b .*{kind}"):
            load()


def test_numbers_that_the_wanted_precision_cannot_hold_are_refused() -> None:
    with pytest.raises(ValueError, match="infinite numbers in float16"):
        files.weights_like(torch.zeros(1, dtype=torch.float16), torch.tensor([1e6]), source="a file")
    counter = torch.tensor(3)
    assert files.weights_like(counter, counter, source="a file") is counter


def test_loading_freezes_and_casts() -> None:
    with torch.device("meta"):
        adopted = Two()
    copied = Two()
    state = {key: value.half() for key, value in Two().state_dict().items()}
    for model in (adopted, copied):
        files.load_strict(model, state, source="a file")
        assert not any(p.requires_grad or p.dtype != torch.float32 for p in model.parameters())


def test_only_one_file_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[str, list[str]]] = []
    save = files.save_file
    monkeypatch.setattr(
        files, "save_file", lambda state, path: (written.append((path.stem, list(state))), save(state, path))
    )
    write(tmp_path, Two().state_dict(), 30)
    assert written == [
        (f".model-00001-of-00002.safetensors.{os.getpid()}", ["a"]),
        (f".model-00002-of-00002.safetensors.{os.getpid()}", ["b", "c"]),
    ]


def test_a_smaller_or_larger_model_replaces_every_file_of_the_other(tmp_path: Path) -> None:
    others = ["config.json", "provenance.json"]
    shards = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    index = "model.safetensors.index.json"
    for shard_bytes, expected in ((1, [*shards, index]), (100, ["model.safetensors"]), (1, [*shards, index])):
        write(tmp_path, Two().state_dict(), shard_bytes)
        assert names(tmp_path) == sorted([*others, *expected])


@pytest.mark.parametrize(("shard_bytes", "written"), [(100, 0), (1, 0), (1, 1)])
def test_a_folder_some_of_whose_weights_are_replaced_is_incomplete(
    shard_bytes: int, written: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, Two().state_dict(), shard_bytes)
    save, calls = files.save_file, []

    def full_disk(state: dict[str, Tensor], path: Path) -> None:
        calls.append(path)
        if len(calls) > written:
            raise OSError("no space left")
        save(state, path)

    monkeypatch.setattr(files, "save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        write(tmp_path, Two().state_dict(), shard_bytes)
    assert ("config.json" in names(tmp_path)) == (written == 0)
    assert not any(name.endswith(".partial") for name in names(tmp_path))


def test_a_damaged_index(tmp_path: Path) -> None:
    for content in ("[]", "{", json.dumps({"weight_map": 3})):
        (tmp_path / "model.safetensors.index.json").write_text(content)
        with pytest.raises(ValueError, match=r"index\.json is damaged"):
            files.weight_files(tmp_path)
