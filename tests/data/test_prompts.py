"""Files of prompts: one a line, JSONL, and everything that is neither."""

from pathlib import Path

import pytest

from swiftmask.data.prompts import ListedPrompt, read_prompts


def written(folder: Path, text: str, name: str = "prompts.txt") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_one_prompt_a_line(tmp_path: Path) -> None:
    path = written(tmp_path, "a red circle\n\n  ein großer Kreis \n")
    assert read_prompts(path) == [ListedPrompt("a red circle"), ListedPrompt("ein großer Kreis")]


def test_columns(tmp_path: Path) -> None:
    lines = '{"prompt": "a", "seed": 7, "style": "anime"}\n{"negative_prompt": "b", "prompt": " c "}\n'
    listed = read_prompts(written(tmp_path, lines, "prompts.jsonl"))
    assert listed == [ListedPrompt("a", None, 7), ListedPrompt("c", "b", None)]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "line 2: expected a JSON object, got '{'"),
        ('["a"]', 'line 2: expected an object with a text under "prompt"'),
        ('{"text": "a"}', 'line 2: expected an object with a text under "prompt"'),
        ('{"prompt": " "}', "line 2: empty prompt"),
        ('{"prompt": "a", "negative_prompt": 3}', "line 2: negative_prompt must be a text, got 3"),
        ('{"prompt": "a", "seed": "x"}', "line 2: seed must be a whole number, got 'x'"),
        ('{"prompt": "a", "seed": true}', "line 2: seed must be a whole number, got True"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(line: str, complaint: str, tmp_path: Path) -> None:
    path = written(tmp_path, '{"prompt": "fine"}\n' + line, "prompts.jsonl")
    with pytest.raises(ValueError, match=complaint):
        read_prompts(path)


def test_no_file_no_prompts_no_text(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file of prompts"):
        read_prompts(tmp_path / "nowhere.txt")
    with pytest.raises(ValueError, match="holds no prompts"):
        read_prompts(written(tmp_path, "\n \n"))
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="no text in UTF-8"):
        read_prompts(tmp_path / "bytes.txt")
