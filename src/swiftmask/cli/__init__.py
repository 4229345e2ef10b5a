"""The command line: `swiftmask COMMAND ...`.

Each command is a frozen dataclass with a `run() -> int` in its own module, which is imported when the
command is chosen; its fields are its options. A user's mistake ends in one line on stderr and exit code 2,
never in a traceback (`SWIFTMASK_DEBUG=1` shows it).
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True, slots=True)
class Command:
    """Where a command lives, and what `swiftmask --help` says about it.

    Attributes:
        computes: takes `--threads`.
    """

    module: str
    name: str
    summary: str
    computes: bool = True


COMMANDS = {
    "generate": Command("generate", "Generate", "Generate images, with or without an accelerator."),
    "train": Command(
        "train", "Train", "Train what a recipe describes, or continue; without a recipe, list them."
    ),
    "compare": Command(
        "compare", "Compare", "Compare a folder of images with real ones: FID and related metrics."
    ),
    "nearest": Command(
        "nearest", "NearestImages", "The training image that each generated one is nearest to: copies or not."
    ),
    "bench": Command(
        "bench", "Bench", "Quality against cost, over step counts and accelerators: a page, a card, JSON."
    ),
    "bench speed": Command(
        "bench_speed", "BenchSpeed", "Time a full step and every accelerated one beside the matmul peak."
    ),
    "tune": Command("tune", "Tune", "Find the best settings under a bound on cost or quality."),
    "convert": Command(
        "convert", "Convert", "Turn released weights into a model or shortcut folder.", computes=False
    ),
    "data emoji": Command(
        "data", "DataEmoji", "Build the Emoji images: real images with captions.", computes=False
    ),
    "verify": Command("verify", "Verify", "Compare our models with recorded numbers of the references."),
    "demo": Command(
        "demo", "Demo", "Generate with the full and the accelerated model side by side, with a report."
    ),
    "serve": Command("serve", "Serve", "Serve images over HTTP, as OpenAI's clients ask for them."),
    "studio": Command("studio", "Studio", "Open a page that compares the full and the accelerated model."),
    "serve-reward": Command("serve_reward", "ServeReward", "Serve a reward's scores over HTTP."),
    "models": Command(
        "models", "Models", "List the models, accelerators and readers there are.", computes=False
    ),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command. Raises SystemExit: the command's own code, 2 for a mistake, 130 when interrupted."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args or os.environ.get("SWIFTMASK_DEBUG", "") not in ("", "0")
    args = [arg for arg in args if arg != "--debug"]
    if args and args[0] == "--version":
        from swiftmask import __version__

        sys.stdout.write(f"swiftmask {__version__}\n")
        raise SystemExit(0)
    if not args or args[0] in ("-h", "--help"):
        sys.stdout.write(overview())
        raise SystemExit(0 if args else 2)
    name, rest = _choose(args)
    from swiftmask.cli.errors import parse, run_safely
    from swiftmask.cli.progress import notes_held, show_warnings

    show_warnings()

    def start() -> int:
        from swiftmask.cli.threads import HELP, say_later_if_busy, use_threads, without_threads

        command = COMMANDS[name]
        own, threads = without_threads(rest) if command.computes else (rest, None)
        if threads is not None:
            use_threads(threads)
        command_class: Any = getattr(import_module(f"swiftmask.cli.{command.module}"), command.name)
        options = parse(command_class, own, prog=f"swiftmask {name}", more=HELP if command.computes else "")
        if command.computes:
            say_later_if_busy()
        with notes_held():
            return options.run()

    raise SystemExit(run_safely(start, debug=debug))


def overview() -> str:
    """The text of `swiftmask --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: swiftmask COMMAND [options]",
            "",
            "Masked image generators, accelerated, with the cost and the quality measured.",
            "",
            *lines,
            "",
            "swiftmask COMMAND --help lists its options; swiftmask --version prints the version.",
            "",
        ]
    )


def _choose(args: list[str]) -> tuple[str, list[str]]:
    """The command named by the first word or two, and what follows."""
    if args[0] == "bench" and "--random-weights" in args:  # only speed can be measured without weights
        return "bench speed", args[1:] if args[1:2] != ["speed"] else args[2:]
    for length in (2, 1):
        name = " ".join(args[:length])
        if name in COMMANDS:
            return name, args[length:]
    group = [name for name in COMMANDS if name.startswith(f"{args[0]} ")]
    asks = len(args) > 1 and args[1] in ("-h", "--help")
    if group and asks:
        sys.stdout.write("".join(f"{name:<16}{COMMANDS[name].summary}\n" for name in group))
        raise SystemExit(0)
    import difflib

    named = " ".join(args[:2]) if group else args[0]
    near = group or difflib.get_close_matches(named, COMMANDS, n=1, cutoff=0.5)
    mend = f"did you mean {' or '.join(near)}?" if near else "see swiftmask --help"
    sys.stderr.write(f"swiftmask: unknown command {named!r}: {mend}\n")
    raise SystemExit(2)
