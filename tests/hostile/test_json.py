"""Every reader of a JSON file: text that is not what it reads is a ValueError that names the file."""

from collections.abc import Callable
from pathlib import Path

import pytest

from swiftmask.core.settings import read_json
from swiftmask.data.images.index import INDEX, CacheIndex
from swiftmask.evaluate.extractors import load_extractor
from swiftmask.evaluate.presets import read_preset
from swiftmask.evaluate.summary import read_report
from swiftmask.rewards.clip_files import read_model
from swiftmask.rewards.clip_preprocessing import CONFIG, Preprocessing

TEXTS = (b"", b"{", b"[]", b"null", b"1", b'"a"', b"\xff\xfe\0", b"[" * 100_000, b'{"a":' * 100_000, b"{}x")

READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "config": ("config.json", lambda folder: read_json(folder / "config.json")),
    "preset": ("preset.json", lambda folder: read_preset(folder / "preset.json")),
    "quality report": ("report.json", lambda folder: read_report(folder / "report.json")),
    "extractor": ("config.json", lambda folder: load_extractor(folder)),
    "clip": ("config.json", read_model),
    "preprocessing": (CONFIG, Preprocessing.read),
    "latents": (INDEX, CacheIndex.read),
}


@pytest.mark.parametrize("reader", READERS)
def test_text_that_is_no_json(reader: str, tmp_path: Path, count: Callable[[int], None]) -> None:
    name, read = READERS[reader]
    for beside in ("model.safetensors", CONFIG):
        (tmp_path / beside).write_bytes(b"")
    for text in TEXTS:
        (tmp_path / name).write_bytes(text)
        with pytest.raises(ValueError, match=name) as error:
            read(tmp_path)
        assert "\n" not in str(error.value)
    count(len(TEXTS))
