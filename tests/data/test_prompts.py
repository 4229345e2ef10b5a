"""Files of prompts: text, JSONL, CSV, and everything that is none of them."""

import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from swiftmask.data.prompts import ListedPrompt, read_prompts, require_text


def written(folder: Path, text: str, name: str = "prompts.txt") -> Path:
    path = folder / name
    path.write_bytes(text.encode("utf-8"))
    return path


def test_one_prompt_a_line(tmp_path: Path) -> None:
    path = written(tmp_path, "a red circle\n\n  ein großer Kreis \n")
    assert read_prompts(path) == [ListedPrompt("a red circle"), ListedPrompt("ein großer Kreis")]
    assert [prompt.line for prompt in read_prompts(path)] == [1, 3]


@pytest.mark.parametrize("name", ["p.jsonl", "p.JSONL", "p.ndjson", "p.NDJson"])
def test_columns(name: str, tmp_path: Path) -> None:
    lines = '{"prompt": "a", "seed": 7, "style": "anime"}\n{"negative_prompt": "b", "prompt": " c "}\n'
    listed = read_prompts(written(tmp_path, lines, name))
    assert listed == [ListedPrompt("a", None, 7), ListedPrompt("c", "b", None)]
    assert [prompt.columns for prompt in listed] == [{"style": "anime"}, {}]


@pytest.mark.parametrize(("name", "delimiter"), [("p.csv", ","), ("p.CSV", ";"), ("p.tsv", "\t")])
def test_tables(name: str, delimiter: str, tmp_path: Path) -> None:
    rows = [
        ("Seed", "prompt", "negative_prompt", "note"),
        ("7", '"a, ""b"";\t c"', "", "x"),
        ("", "d", "e", ""),
    ]
    text = "\r\n".join(delimiter.join(row) for row in rows) + "\r\n\r\n"
    listed = read_prompts(written(tmp_path, text, name))
    assert listed == [ListedPrompt('a, "b";\t c', None, 7), ListedPrompt("d", "e", None)]
    assert [prompt.columns for prompt in listed] == [{"note": "x"}, {}]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85"])
@pytest.mark.parametrize("name", ["p.txt", "p.jsonl", "p.csv"])
def test_lines_end_at_newlines_only(separator: str, name: str, tmp_path: Path) -> None:
    text = f"a{separator}b"
    line = json.dumps({"prompt": text}, ensure_ascii=False) if name == "p.jsonl" else text
    head = "prompt\n" if name == "p.csv" else ""
    listed = read_prompts(written(tmp_path, f"{head}{line}\r\n{line}\n", name))
    assert [prompt.text for prompt in listed] == [text, text]


@pytest.mark.parametrize(
    ("name", "line"), [("p.txt", "a cat"), ("p.jsonl", '{"prompt": "a cat"}'), ("p.csv", "prompt\na cat")]
)
def test_byte_order_marks_are_dropped(name: str, line: str, tmp_path: Path) -> None:
    assert read_prompts(written(tmp_path, f"\ufeff{line}\n", name)) == [ListedPrompt("a cat")]
    if name != "p.csv":  # as `cat one two` leaves them
        assert read_prompts(written(tmp_path, f"{line}\n\ufeff{line}\n", name)) == [ListedPrompt("a cat")] * 2


def test_settings_among_the_columns_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "prompts.csv").write_text("prompt,Steps,guidance_scale,caption_size\na,4,3.0,12\n")
    with caplog.at_level(logging.WARNING):
        read_prompts(tmp_path / "prompts.csv")
    assert "steps, guidance_scale are not read" in caplog.text
    assert "caption_size" not in caplog.text


def test_comments_are_counted_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path, "# two cats\na cat\n  #another\na cat #2\n")
    with caplog.at_level(logging.WARNING):
        assert [prompt.text for prompt in read_prompts(path)] == ["a cat", "a cat #2"]
    assert "2 lines beginning with # passed over" in caplog.text
    assert read_prompts(written(tmp_path, '{"prompt": "# 1"}', "p.jsonl")) == [ListedPrompt("# 1")]


@pytest.mark.parametrize(
    "prompt",
    [
        "a cat, oil painting, 4k",
        "[masterpiece] a cat",
        "{red|blue} car",
        '"Hello", said the cat',
        '"stop" sign',
        "prompt engineering, explained",
        "route 66",
        "a seed, a prompt and a cat",
        "c:\\\\cats",
        "1",
        "4,000 people",
        "prompt delivery, a seed",
    ],
)
def test_prompts_that_are_taken_as_they_are(prompt: str, tmp_path: Path) -> None:
    assert read_prompts(written(tmp_path, f"{prompt}\na dog\n")) == [
        ListedPrompt(prompt),
        ListedPrompt("a dog"),
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"prompt": "a"}\n', r"line 1: looks like JSON .*name the file \.jsonl"),
        ('a\n["b", "c"]\n', r"line 2: looks like JSON"),
        ('[\n{"prompt": "a"},\n{"prompt": "b"}\n]\n', "4 lines cannot be read: line 1: looks like JSON"),
        ("{\n", "line 1: looks like JSON"),
        (
            "prompt,seed\na,3\n",
            r"line 1: 'prompt,seed' looks like the header of a table: name the file \.csv",
        ),
        ("Prompt;Negative_Prompt\na;b\n", "looks like the header"),
        ("prompt\na\n", "looks like the header"),
        ("a\tb\n", r"line 1: looks like a row of a table .*\.tsv or \.csv"),
        ('"a","b"\n', "line 1: looks like a row of a table"),
        ('"a, b",5\n', "every line has a number beside a comma"),
        ("a red circle,5\na blue square,6\n", "every line has a number beside a comma"),
        ("a red circle;5\na blue square;6\n", "every line has a number beside a comma"),
        ("1|a red circle\n2|a blue square\n", "every line has a number beside a comma"),
        ('a red circle\n"a blue square"\n', "line 2: is in quotes"),
        ("'a red circle'\n", "line 1: is in quotes"),
        ("- prompt: a red circle\n", "line 1: looks like a setting"),
        ('seed = 3\n"prompt": "a"\n', "2 lines cannot be read: line 1: looks like a setting"),
        ("a\rb\rc", "line 1: has a carriage return inside"),
    ],
)
def test_other_formats_are_refused_by_name(text: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"prompts\.txt.*{complaint}"):
        read_prompts(written(tmp_path, text))


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
        ('{"prompt": "a", "seed": -1}', r"line 2: seed must be between 0 and 2\*\*63 - 1, got -1"),
        ('{"prompt": "a", "seed": 1e3}', "line 2: seed must be a whole number, got 1000"),
        ('{"prompt": "a", "seed": ' + "9" * 5000 + "}", "line 2: expected a JSON object"),
        ('{"prompt": "\\ud800"}', "line 2: .*half of a surrogate pair"),
        ('{"prompt": "a", "negative_prompt": "\\udfff"}', "line 2: .*half of a surrogate pair"),
        ("[" * 100_000, "line 2: expected a JSON object"),
        ('{"prompt": "a", "prompt": "b"}', "line 2: .*the column prompt is there twice"),
        (
            '{"prompt": "a", "negative": "b"}',
            "line 2: .*the column 'negative' is not read: call it negative_pro",
        ),
        ('{"prompt": "a", "Seed": 3}', "line 2: .*the column 'Seed' is not read: call it seed"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(line: str, complaint: str, tmp_path: Path) -> None:
    path = written(tmp_path, '{"prompt": "fine"}\n' + line, "prompts.jsonl")
    with pytest.raises(ValueError, match=complaint):
        read_prompts(path)


def test_all_bad_lines_are_named_at_once(tmp_path: Path) -> None:
    lines = ["x" if number % 2 else '{"prompt": "a"}' for number in range(1, 17)]
    with pytest.raises(
        ValueError, match="8 lines cannot be read: line 1: .*line 9: .*and line 11, line 13, line 15"
    ):
        read_prompts(written(tmp_path, "\n".join(lines), "p.jsonl"))
    with pytest.raises(
        ValueError, match="2 lines cannot be read: line 2: expected 2 cells, got 3.*line 4: seed"
    ):
        read_prompts(written(tmp_path, "prompt,seed\na,b,1\nc,2\nd,x\n", "p.csv"))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a,b\nc,d\n", "line 1: expected a first line of column names"),
        ('prompt\n"a"b\n', "in double quotes"),
        ("prompt,negativ_prompt\na,b\n", "line 1: the column 'negativ_prompt' is not read"),
        ("seed,prompt,seed\n1,a,2\n", "line 1: the column seed is there twice"),
    ],
)
def test_tables_that_cannot_be_read(text: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=complaint):
        read_prompts(written(tmp_path, text, "p.csv"))


def test_no_file_no_prompts_no_text(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file of prompts"):
        read_prompts(tmp_path / "nowhere.txt")
    with pytest.raises(FileNotFoundError, match="it is a folder"):
        read_prompts(tmp_path)
    for suffix in (".yaml", ".YML", ".html", ".toml", ".xml"):
        with pytest.raises(ValueError, match=f"{suffix.lower()} is not read: save the prompts as"):
            read_prompts(written(tmp_path, "a cat\n", f"p{suffix}"))
    for text in ("", "\n \n", "\ufeff", "# only a comment\n"):
        for name in ("p.txt", "p.jsonl", "p.csv"):
            if name == "p.txt" or "#" not in text:
                with pytest.raises(ValueError, match="holds no prompts"):
                    read_prompts(written(tmp_path, text, name))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("a cat".encode("utf-16"), "no text in UTF-8, but UTF-16"),
        ("a cat".encode("utf-16-le"), "no text in UTF-8, but UTF-16"),
        (b"\x89PNG\r\n\x1a\n\0\0", "not text at all"),
        ("a\nein Bär\n".encode("latin-1"), "line 2 is no text in UTF-8"),
    ],
)
def test_other_encodings_are_named(content: bytes, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"p\.txt.*{complaint}"):
        read_prompts(tmp_path / "p.txt")


def test_a_pipe_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor() as writer:
        writer.submit((tmp_path / "pipe").write_text, "a cat\n")
        assert read_prompts(tmp_path / "pipe") == [ListedPrompt("a cat")]


def test_half_a_surrogate_pair_is_no_prompt() -> None:
    assert require_text("🐈 猫") == "🐈 猫"
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        require_text("a\udce4")


def test_a_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    columns = {"prompt": ["a circle", "a square"], "seed": [5, None], "negative_prompt": [None, "red"]}
    parquet.write_table(pa.table(columns), path)
    assert read_prompts(path) == [ListedPrompt("a circle", None, 5), ListedPrompt("a square", "red", None)]
    parquet.write_table(pa.table({"prompt": ["a circle", " "]}), path)
    with pytest.raises(ValueError, match=r"list\.parquet, line 2: empty prompt"):
        read_prompts(path)
    parquet.write_table(pa.table({"text": ["a circle"]}), path)
    with pytest.raises(ValueError, match="expected a column prompt, got text"):
        read_prompts(path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match="no Parquet file, or damaged"):
        read_prompts(path)
