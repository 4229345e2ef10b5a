"""Lists of prompts in files: one prompt a line, or JSONL with columns."""

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ListedPrompt:
    """One entry of a list.

    Attributes:
        negative: what the picture is not to show; None where the list does not say.
        seed: of its first picture; None where the list does not say.
    """

    text: str
    negative: str | None = None
    seed: int | None = None


def read_prompts(path: str | Path) -> list[ListedPrompt]:
    """The prompts of a file, in its order.

    A `.jsonl` file has one object a line: "prompt", and if wanted "negative_prompt" and "seed"; columns of
    other names are for other readers. Every other file has one prompt a line. Blank lines are passed over.

    Errors: FileNotFoundError; ValueError naming the line that cannot be read, or for a file without prompts.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no such file of prompts: {path}")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error.reason}): save it as such") from error
    numbered = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise ValueError(f"{path} holds no prompts: expected one a line, or JSONL with a column prompt")
    if path.suffix != ".jsonl":
        return [ListedPrompt(line) for _, line in numbered]
    return [_parsed(line, f"{path}, line {number}") for number, line in numbered]


def _parsed(line: str, where: str) -> ListedPrompt:
    try:
        columns = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: expected a JSON object, got {line[:40]!r} ({error.msg})") from error
    if not isinstance(columns, dict) or not isinstance(columns.get("prompt"), str):
        raise ValueError(f'{where}: expected an object with a text under "prompt", got {line[:40]!r}')
    text, negative, seed = columns["prompt"].strip(), columns.get("negative_prompt"), columns.get("seed")
    if not text:
        raise ValueError(f"{where}: empty prompt: say what to draw")
    if not isinstance(negative, str | None):
        raise ValueError(f"{where}: negative_prompt must be a text, got {negative!r}")
    if isinstance(seed, bool) or not isinstance(seed, int | None):
        raise ValueError(f"{where}: seed must be a whole number, got {seed!r}")
    return ListedPrompt(text, negative, seed)
