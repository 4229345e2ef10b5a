"""The Python of docs/integrations.md runs as it stands."""

import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

PAGE = Path(__file__).parents[2] / "docs" / "integrations.md"


def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    for block in blocks:
        exec(block, names)
    assert len(blocks) == 3
    assert isinstance(names["image"], Image.Image)
    assert (tmp_path / "fast-circles" / "model_index.json").is_file()
    assert names["result"].stopped and not names["rest"].stopped
    assert set(names["NODE_CLASS_MAPPINGS"]) == set(names["NODE_DISPLAY_NAME_MAPPINGS"])
