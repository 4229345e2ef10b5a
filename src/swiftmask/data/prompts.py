"""Lists of prompts in files: one a line, JSONL, CSV or Parquet; docs/inputs.md states the rules."""

import csv
import io
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from swiftmask.core.optional import library
from swiftmask.core.settings import first_line

_log = logging.getLogger(__name__)

_DELIMITERS = {".csv": ",;\t", ".tsv": "\t"}
_COLUMNS = {"prompt", "negative_prompt", "seed"}
_NEARLY = re.compile(r"neg|seeds?$")
"""How names begin that are meant for columns which are read."""

_SETTINGS = re.compile(
    r"(num_inference_|full_)?steps|guidance(_scale)?|cfg(_scale)?|(choice_)?temperature|sampler|size"
)
"""Names of columns that hold settings of `generate`, which are those of all prompts."""

_MARKUP = (".yaml", ".yml", ".toml", ".xml", ".html", ".htm")
_MOST_NAMED = 5
_JSON = re.compile(r"""\[?\s*[{\[]\s*(["'{\[].*)?|[\]}],?""")
"""How a line of JSON begins that may go on in the next line. `{red|blue} car` is a prompt."""


@dataclass(frozen=True, slots=True)
class ListedPrompt:
    """One entry of a list.

    Attributes:
        negative: what the image is not to show; None where the list does not say.
        seed: of its first image; None where the list does not say.
        line: of the file, from 1; None without a file.
        columns: other columns of a table, such as what the image is to show: text, or numbers as text.
    """

    text: str
    negative: str | None = None
    seed: int | None = None
    line: int | None = field(default=None, compare=False)
    columns: Mapping[str, str] = field(default_factory=dict, compare=False)


def read_prompts(path: str | Path) -> list[ListedPrompt]:
    """The prompts of a file, in its order. How it is read depends on its suffix, in any case.

    `.jsonl`, `.ndjson`: one object a line with "prompt", and if wanted "negative_prompt" and "seed"; columns
    of other names are kept as `columns`. `.csv`, `.tsv`: the same columns, named by the first line.
    `.parquet`: the same columns, and rows for lines. Every
    other file has one prompt a line; lines that begin with # are comments, which are counted and said. Lines
    end at \\n or \\r\\n only. Blank lines are passed over.

    Errors: FileNotFoundError; ValueError naming all lines that cannot be read, or for a file without prompts.
    """
    path = Path(path).expanduser()
    if not path.exists() or path.is_dir():  # a pipe is read, too
        mend = " (it is a folder: name a file)" if path.is_dir() else ""
        raise FileNotFoundError(f"no such file of prompts: {path}{mend}")
    suffix = path.suffix.lower()
    if suffix in _MARKUP:
        raise ValueError(f"{path}: {suffix} is not read: save the prompts as .txt, .jsonl or .csv")
    if suffix == ".parquet":
        return _all_or_errors(_rows_of_parquet(path), path)
    text = _text_of(path)
    if suffix in _DELIMITERS:
        parsed = _rows_of_csv(text, path, _DELIMITERS[suffix])
    elif suffix in (".jsonl", ".ndjson"):
        parsed = ((number, line, _of_json) for number, line in _lines(text))
    else:
        lines = list(_lines(text))
        kept = _without_comments(lines, path)
        listed = _all_or_errors(((number, line, _of_text) for number, line in kept), path)
        _say_comments(len(lines) - len(kept), path)
        return listed
    return _all_or_errors(parsed, path)


def require_text(text: str) -> str:
    """A prompt as it may be given to a model. Errors: ValueError for half of a surrogate pair."""
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(
            f"{ascii(text[:40])} holds half of a surrogate pair, which is no text: write it anew"
        )
    return text


def name_all(problems: Sequence[tuple[str, str]]) -> str:
    """Places and what is wrong there, on one line: the first few in full, of the others the places."""
    full = "; ".join(f"{place}: {problem}" for place, problem in problems[:_MOST_NAMED])
    rest = [place for place, _ in problems[_MOST_NAMED:]]
    return full + (f"; and {', '.join(rest)}" if rest else "")


def _text_of(path: Path) -> str:
    content = path.read_bytes()
    if content[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in content:
        raise ValueError(f"{path} is no text in UTF-8, but UTF-16 or not text at all: save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}, line {line} is no text in UTF-8 ({error.reason}): save it as UTF-8"
        ) from error


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Those that are not blank, with their numbers. A byte order mark in front of any is dropped."""
    for number, line in enumerate(text.split("\n"), start=1):
        if stripped := line.strip().removeprefix("\ufeff").strip():
            yield number, stripped


def _say_comments(count: int, path: Path) -> None:
    if count:
        _log.warning(
            f"{path}: {count} line{'s' * (count > 1)} beginning with # passed over as comments "
            "(a prompt that begins so can be given in a .jsonl file)"
        )


def _without_comments(lines: Sequence[tuple[int, str]], path: Path) -> list[tuple[int, str]]:
    """Errors: ValueError for the lines of a table."""
    kept = [(number, line) for number, line in lines if not line.startswith("#")]
    if kept and _is_csv_header(kept[0][1]):
        raise ValueError(
            f"{path}, line {kept[0][0]}: {kept[0][1][:40]!r} looks like the header of a table: name the file "
            ".csv or .tsv"
        )
    numbered = (r".*[,;|]-?\d+", r"\d+[,;|]\D.*")
    if kept and any(all(re.fullmatch(row, line) for _, line in kept) for row in numbered):
        raise ValueError(
            f"{path}: every line has a number beside a comma, like a table: name the file .csv, with a "
            "first line of column names (prompt,seed)"
        )
    return kept


def _is_csv_header(line: str) -> bool:
    cells = [cell.strip(' "').lower() for cell in re.split(r"[,;\t]", line)]
    words = all(re.fullmatch(r"\w*", cell) for cell in cells)
    return words and (cells == ["prompt"] or (len(cells) > 1 and not _COLUMNS.isdisjoint(cells)))


def _of_text(line: str) -> ListedPrompt:
    if _looks_like_json(line):
        raise ValueError(f"looks like JSON ({line[:40]!r}): name the file .jsonl, with one object a line")
    if re.fullmatch(r'"([^"]|"")*"|\'[^\']*\'', line):
        raise ValueError(f"is in quotes ({line[:40]!r}), like JSON or a table: take them off")
    if re.match(r"[-*\s]*[\"']?(prompt|negative_prompt|seed)[\"']?\s*[:=]", line):
        raise ValueError(f"looks like a setting ({line[:40]!r}): name the file .jsonl, one object a line")
    if "\t" in line or re.fullmatch(r'"([^"]|"")*"(,("([^"]|"")*"|-?\d*))+', line):
        raise ValueError(f"looks like a row of a table ({line[:40]!r}): name the file .tsv or .csv")
    if "\r" in line:
        raise ValueError("has a carriage return inside: save the file with lines that end in \\n")
    return ListedPrompt(require_text(line))


def _looks_like_json(line: str) -> bool:
    if _JSON.fullmatch(line):
        return True
    try:
        return line[0] in "[{" and isinstance(json.loads(line), dict | list)
    except (ValueError, RecursionError):
        return False


def _of_json(line: str) -> ListedPrompt:
    try:
        columns = json.loads(line, object_pairs_hook=_columns)
    except (ValueError, RecursionError) as error:
        why = error.msg if isinstance(error, json.JSONDecodeError) else str(error).split(";")[0]
        raise ValueError(f"expected a JSON object, got {line[:40]!r} ({why})") from error
    if not isinstance(columns, dict):
        raise ValueError(f'expected an object with a text under "prompt", got {line[:40]!r}')
    return _of_object(columns)


def _of_object(columns: dict[str, Any]) -> ListedPrompt:
    if not isinstance(columns.get("prompt"), str):
        raise ValueError(f'expected an object with a text under "prompt", got {str(columns)[:40]!r}')
    found = _of_columns(columns["prompt"], columns.get("negative_prompt"), columns.get("seed"))
    return replace(found, columns=_others(columns))


def _columns(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Errors: ValueError for a column that is there twice, or whose name is nearly one that is read."""
    names = [name for name, _ in pairs]
    if twice := next((name for name in names if name in _COLUMNS and names.count(name) > 1), None):
        raise ValueError(f"the column {twice} is there twice")
    for name in names:
        if _NEARLY.match(name.strip().lower()) and name not in _COLUMNS:
            meant = "seed" if name.strip().lower().startswith("s") else "negative_prompt"
            raise ValueError(f"the column {name!r} is not read: call it {meant}")
    return dict(pairs)


def _of_columns(text: str, negative: object, seed: object) -> ListedPrompt:
    text = require_text(text.strip())
    if not text:
        raise ValueError("empty prompt: say what to generate")
    if not isinstance(negative, str | None):
        raise ValueError(f"negative_prompt must be a text, got {negative!r}")
    if isinstance(seed, bool) or not isinstance(seed, int | None):
        raise ValueError(f"seed must be a whole number, got {seed!r}")
    if seed is not None and not 0 <= seed < 2**63:
        raise ValueError(f"seed must be between 0 and 2**63 - 1, got {seed}")
    return ListedPrompt(text, None if negative is None else require_text(negative), seed)


Parsed = Iterator[tuple[int, Any, Callable[[Any], ListedPrompt]]]
"""Line numbers, what lies there, and what makes a prompt of it."""


def _rows_of_csv(text: str, path: Path, delimiters: str) -> Parsed:
    """Rows by column name. Errors: ValueError for a header without the column prompt, or broken quotes."""
    header = next((line for _, line in _lines(text)), "")
    if not header:
        return
    delimiter = max(delimiters, key=header.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] = []
    try:
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            if names:
                yield rows.line_num, (names, row), _of_row
                continue
            names = [cell.strip().lower() for cell in row]
            try:
                _columns([(name, None) for name in names])
            except ValueError as error:
                raise ValueError(f"{path}, line {rows.line_num}: {error}") from error
            if "prompt" not in names:
                raise ValueError(
                    f"{path}, line {rows.line_num}: expected a first line of column names, one of them "
                    f"prompt, got {header[:40]!r}"
                )
    except csv.Error as error:
        raise ValueError(f"{path}, line {rows.line_num}: {error}: put texts in double quotes") from error


def _rows_of_parquet(path: Path) -> Parsed:
    """Errors: ValueError for a damaged file, one without the column prompt, or if pyarrow is missing."""
    library("pyarrow", "a Parquet file of prompts")
    from pyarrow import ArrowException, parquet

    try:
        table = parquet.read_table(path)
    except (ArrowException, OSError) as error:
        raise ValueError(f"{path} is no Parquet file, or damaged ({first_line(error)})") from error
    _columns([(name, None) for name in table.column_names])
    if "prompt" not in table.column_names:
        raise ValueError(f"{path}: expected a column prompt, got {', '.join(table.column_names)}")
    return ((number, row, _of_object) for number, row in enumerate(table.to_pylist(), 1))


def _of_row(named: tuple[list[str], list[str]]) -> ListedPrompt:
    names, cells = named
    if len(cells) != len(names):
        raise ValueError(f"expected {len(names)} cells, got {len(cells)}: put texts with commas in quotes")
    columns = dict(zip(names, cells, strict=True))
    negative, seed = columns.get("negative_prompt", "").strip(), columns.get("seed", "").strip()
    if seed and not re.fullmatch(r"[+-]?[0-9]{1,30}", seed):
        raise ValueError(f"seed must be a whole number, got {seed!r}")
    found = _of_columns(columns["prompt"], negative or None, int(seed) if seed else None)
    return replace(found, columns=_others(columns))


def _others(columns: Mapping[str, Any]) -> dict[str, str]:
    """What is text, or a number, in columns that are not read here."""
    return {
        name: str(value)
        for name, value in columns.items()
        if name not in _COLUMNS and isinstance(value, str | int | float) and str(value).strip()
    }


def _say_settings(listed: Sequence[ListedPrompt], path: Path) -> None:
    names = dict.fromkeys(name for entry in listed for name in entry.columns)
    if found := [name for name in names if _SETTINGS.fullmatch(name.lower())]:
        _log.warning(
            f"{path}: {', '.join(found)} {'are' if len(found) > 1 else 'is'} not read: settings are options "
            "of the command, the same for all prompts"
        )


def _all_or_errors(parsed: Parsed, path: Path) -> list[ListedPrompt]:
    listed, problems = [], []
    for number, content, parse in parsed:
        try:
            entry = parse(content)
        except ValueError as error:
            problems.append((f"line {number}", str(error)))
        else:
            listed.append(replace(entry, line=number))
    if len(problems) == 1:
        raise ValueError(f"{path}, {name_all(problems)}")
    if problems:
        raise ValueError(f"{path}: {len(problems)} lines cannot be read: {name_all(problems)}")
    if not listed:
        raise ValueError(f"{path} holds no prompts: expected one a line, or JSONL with a column prompt")
    _say_settings(listed, path)
    return listed
