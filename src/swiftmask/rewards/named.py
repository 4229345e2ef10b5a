"""Rewards and judges by name: what recipes, benchmarks and `serve-reward` take.

    pickscore                the released weights, from Hugging Face
    pickscore=PATH           from a local folder
    hps=PATH:0.5             a local file or folder, with a weight (1 where none is given)
    reader=PATH              a reader of your own categories (swiftmask train reader)
    http://host:8765:0.5     a reward server, with a weight
    my_module:score          a function of your own, in the working directory or installed

A PATH that is a folder may hold the CLIP that the weights go with in a subfolder `clip`.
"""

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from swiftmask.core.ranges import Range, check

if TYPE_CHECKING:
    from swiftmask.rewards.reader import AskedColumns

Reward = Callable[[Tensor, Sequence[Any]], Any]
"""`reward(images_B3HW, prompts or labels) -> scores_B`."""

_WEIGHT = Range(low=0, high=1e6, above=True)
_ENTRY = re.compile(
    r"(?P<body>https?://[^/:]+(?::\d+)?(?:/[^:]*)?|.+?)(?::(?P<weight>\d*\.?\d+(?:[eE][+-]?\d+)?))?"
)

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

PROMPT_TEMPLATE = "a high-quality and harmonious picture of {name}"
"""How a class is put to a reward that reads prompts (MARVAL, arXiv 2511.15190)."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A reward or a judge as a setting names it.

    Attributes:
        name: "pickscore", a URL or MODULE:FUNCTION.
        path: of the weights; empty takes the published ones.
    """

    name: str
    path: str = ""
    weight: float = 1.0

    @classmethod
    def parsed(cls, text: str) -> "Entry":
        """Errors: ValueError for an unknown name or a weight out of range."""
        found = _ENTRY.fullmatch(text.strip())
        if found is None:
            raise ValueError(f"expected a reward such as pickscore or hps=PATH:0.5, got {text!r}")
        weight = float(found["weight"] or 1.0)
        check(f"the weight of {found['body']}", weight, _WEIGHT)
        if found["body"].startswith(("http://", "https://")):
            return cls(found["body"], weight=weight)
        name, equals, path = found["body"].partition("=")
        if name.startswith(f"{READER}:"):
            raise ValueError(f"a reader is written {READER}=PATH, got {text!r}")
        if name not in NAMES and ":" not in name:
            near = get_close_matches(name, NAMES, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there is {', '.join(NAMES)}"
            raise ValueError(f"unknown reward {name!r}: {hint} (or a URL, or MODULE:FUNCTION)")
        if equals and not path:
            raise ValueError(f"no path behind {name}=: name the weights, or leave out =")
        return cls(name, path, weight)


def label_of(entry: Entry) -> str:
    """What logs and tables call it: its name, and of a reader that which it was trained under."""
    if entry.name != READER:
        return entry.name
    from swiftmask.rewards.reader import reader_name

    return reader_name(entry.path)


def require_weights(entry: Entry) -> None:
    """Errors: ValueError or FileNotFoundError for weights that are not given or not there. Reads nothing."""
    if entry.name in ("hps", "aesthetic", READER):
        _required(entry.path, entry.name)
    if entry.name == READER:
        from swiftmask.rewards.reader import reader_folder

        reader_folder(entry.path)
        return
    if entry.path and not Path(entry.path).expanduser().exists() and not _REPO_ID.fullmatch(entry.path):
        raise FileNotFoundError(f"no weights of {entry.name} at {entry.path}")


def entries(texts: Sequence[str]) -> list[Entry]:
    """What a setting names, with its weights looked for. Errors: as `Entry.parsed` and `require_weights`."""
    found = [Entry.parsed(text) for text in texts]
    for entry in found:
        require_weights(entry)
    return found


def load(
    entry: Entry,
    *,
    clip: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    asked: "AskedColumns | None" = None,
) -> Reward:
    """What scores images against prompts; frozen.

    Args:
        clip: folder or repository of the CLIP that the weights go with; None looks beside them, then takes
            the published one.
        dtype: of CLIP's weights, which follow the images to their device.
        device: of a network that reads Scenes or columns.
        asked: what the image of each prompt is to show, for a reader of columns.

    Errors: ValueError or FileNotFoundError naming what is missing, and ConnectionError for a server that does
        not answer.
    """
    if entry.name in _CLIP_REWARDS:
        return _CLIP_REWARDS[entry.name](entry.path, clip or _clip_beside(entry.path), dtype)
    if clip is not None:
        raise ValueError(f"{entry.name} goes with no CLIP: {', '.join(_CLIP_REWARDS)} do")
    if entry.name in READERS:
        from swiftmask.rewards.scenes import caption_reward

        return caption_reward(_reader(entry, device))
    if entry.name == READER:
        return _reader_of_prompts(entry, asked, device)
    if entry.path:
        raise ValueError(f"{entry.name} takes no weights: leave out ={entry.path}")
    if entry.name.startswith(("http://", "https://")):
        from swiftmask.rewards.http_client import HttpReward

        server = HttpReward(url=entry.name)
        server.health()  # now rather than after the first images
        return server
    return _imported(entry.name)


def load_for(
    entry: Entry,
    what: Sequence[Any],
    class_names: Sequence[str] | None,
    *,
    asked: "AskedColumns",
    device: torch.device | str = "cpu",
) -> Reward:
    """The same for whatever a model generates for.

    Args:
        what: prompts that will be scored; a reader of Scenes has to understand them.
        class_names: of a model of classes; None for a model of prompts.
        asked: what the image of each prompt is to show, for a reader of columns; empty where nothing says it.

    Errors: as `load` and `load_for_classes`; ValueError for a prompt that a reader of Scenes does not
        understand.
    """
    if class_names is not None:
        return load_for_classes(entry, class_names, device=device)
    if entry.name in READERS:
        from swiftmask.data.scenes import parse_captions

        parse_captions([str(text) for text in what])
    return load(entry, device=device, asked=asked)


def load_for_classes(
    entry: Entry, class_names: Sequence[str], *, device: torch.device | str = "cpu"
) -> Reward:
    """The same for a model of classes: what scores images against labels.

    Args:
        class_names: put to rewards that read prompts; unnamed classes reach functions of your own as labels.

    Errors: as `load`; ValueError for a reward that reads prompts where classes have no names.
    """
    if entry.name in READERS:
        from swiftmask.rewards.scenes import class_reward

        _require_scenes(entry, class_names)
        of_labels = class_reward(_reader(entry, device))
        return lambda images_B3HW, labels: of_labels(images_B3HW, torch.tensor(labels))
    if entry.name == READER:
        return _reader_of_classes(entry, class_names, device, log=False)
    if not class_names and entry.name in NAMES:
        raise ValueError(f"{entry.name} reads prompts, and the classes of this model have no names")
    reward = load(entry, device=device)
    if not class_names:
        return reward
    prompts = class_prompts(class_names)
    return lambda images_B3HW, labels: reward(images_B3HW, [prompts[label] for label in labels])


def load_differentiable(
    entry: Entry, class_names: Sequence[str], *, device: torch.device | str = "cpu"
) -> Reward:
    """The same, differentiable in the images. Errors: ValueError for a reward that has no gradient."""
    if entry.name in READERS:
        from swiftmask.rewards.scenes_likelihood import class_log_likelihood

        _require_scenes(entry, class_names)
        return class_log_likelihood(_reader(entry, device))
    if entry.name == READER:
        return _reader_of_classes(entry, class_names, device, log=True)
    if entry.name not in _CLIP_REWARDS:
        raise ValueError(f"{entry.name} has no gradient: use one of {', '.join(NAMES)}")
    return load_for_classes(entry, class_names, device=device)


def class_prompts(class_names: Sequence[str], template: str = PROMPT_TEMPLATE) -> list[str]:
    """One prompt per class, by the first of its comma-separated names."""
    return [template.replace("{name}", names.split(",")[0].strip()) for names in class_names]


def _require_scenes(entry: Entry, class_names: Sequence[str]) -> None:
    from swiftmask.data.scenes import CLASS_NAMES

    if tuple(class_names) != CLASS_NAMES:
        raise ValueError(f"{entry.name} reads the classes of Scenes, and this model has others")


def _clip_beside(path: str) -> str | None:
    folder = Path(path).expanduser() / "clip"
    return str(folder) if path and folder.is_dir() else None


def _reader(entry: Entry, device: torch.device | str) -> Any:
    from swiftmask.rewards.scenes import WEIGHTS, load_reader

    return load_reader(Path(entry.path).expanduser() if entry.path else WEIGHTS / entry.name, device)


def _reader_of_prompts(entry: Entry, asked: "AskedColumns | None", device: torch.device | str) -> Reward:
    from swiftmask.rewards.reader import load_column_reader, prompt_rows, reader_reward

    if not asked:
        raise ValueError(
            f"{READER}={entry.path} looks for what prompts ask for in columns: give prompts in a .jsonl or "
            ".csv file with these columns, or a data source that has them"
        )
    reader = load_column_reader(entry.path, device)
    return reader_reward(reader, reader.wanted(list(asked.values()), list(asked)), prompt_rows(asked))


def _reader_of_classes(
    entry: Entry, class_names: Sequence[str], device: torch.device | str, *, log: bool
) -> Reward:
    from swiftmask.rewards.reader import load_column_reader, reader_reward

    reader = load_column_reader(_required(entry.path, READER), device)
    return reader_reward(reader, reader.wanted_of_classes(class_names), torch.tensor, log=log)


def _imported(name: str) -> Reward:
    """MODULE:FUNCTION, of the working directory or installed."""
    module_name, _, function_name = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function = getattr(import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"cannot import the reward {name!r} ({error}): expected MODULE:FUNCTION, installed or in "
            f"{os.getcwd()}"
        ) from error
    if not callable(function):
        raise ValueError(f"{name} is no function, but {type(function).__name__}")
    return function


def _hps(path: str, clip: str | None, dtype: torch.dtype) -> Reward:
    from swiftmask.rewards.hps import PROCESSOR, load_hps

    return load_hps(_required(path, "hps"), processor=clip or PROCESSOR, dtype=dtype)


def _aesthetic(path: str, clip: str | None, dtype: torch.dtype) -> Reward:
    from swiftmask.rewards.aesthetic import CLIP_LARGE, load_aesthetic

    return load_aesthetic(_required(path, "aesthetic"), clip=clip or CLIP_LARGE, dtype=dtype)


def _pick_score(path: str, clip: str | None, dtype: torch.dtype) -> Reward:
    from swiftmask.rewards.clip import PICK_SCORE, load_pick_score

    return load_pick_score(path or PICK_SCORE, processor=clip, dtype=dtype)


def _clip_score(path: str, clip: str | None, dtype: torch.dtype) -> Reward:
    from swiftmask.rewards.clip import CLIP_LARGE, load_clip_score

    return load_clip_score(path or CLIP_LARGE, processor=clip, dtype=dtype)


def _required(path: str, name: str) -> str:
    if not path and name == READER:
        raise ValueError(f"{name} needs its folder, as in {name}=runs/reader/model (swiftmask train reader)")
    if not path:
        raise ValueError(
            f"{name} needs its weights, as in {name}=PATH; docs/rewards.md says where to download them"
        )
    return path


_CLIP_REWARDS: Mapping[str, Callable[[str, str | None, torch.dtype], Reward]] = {
    "pickscore": _pick_score,
    "hps": _hps,
    "clip": _clip_score,
    "aesthetic": _aesthetic,
}
READERS = ("scenes-reward", "scenes-judge")
"""Of Scenes."""

READER = "reader"
"""Of columns, made by `swiftmask train reader`."""

NAMES = (*_CLIP_REWARDS, *READERS, READER)
"""Beside URLs and MODULE:FUNCTION."""
