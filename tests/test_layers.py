"""The architecture, read from the sources: who may import whom, how long a file may be, what is banned."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "swiftmask"
FREE = (
    "api",
    "pipeline",
    "presets",
    "registry",
    "sources",
    "cli",
    "serve",
    "studio",
    "stamps",
    "recipes",
    "integrations",
    "__init__",
    "__main__",
)
"""The only places where a model meets a method."""

ALLOWED = {
    "core": ["core"],
    "models": ["core"],
    "training": ["core", "training"],
    "methods": ["core", "training"],
    "data": ["core", "data"],
    "rewards": ["core", "data", "rewards"],
    "evaluate": ["core", "data", "rewards", "evaluate"],
    "fleet": ["core", "fleet"],
}
"""Layers by folder; a model or a method may also import its own folder."""

THIRD_PARTY = {"core": {"torch", "safetensors"}, "models": {"torch", "safetensors", "numpy"}}
MAX_LINES = 600
"""Of a file of one job; a longer one is two."""


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module named in an import, also inside functions and `if TYPE_CHECKING`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(source: str, relative: Path) -> list[str]:
    """What a file at `relative` (below the package) imports without being allowed to."""
    layer = relative.parts[0].removesuffix(".py")
    if layer in FREE:
        return []
    allowed = [f"swiftmask.{name}" for name in ALLOWED[layer]]
    if layer in ("models", "methods"):
        allowed.append(".".join(("swiftmask", *relative.parts[:2])))
    outside = THIRD_PARTY.get(layer)
    found = []
    for name in imported(ast.parse(source)):
        top = name.split(".")[0]
        if top == "swiftmask":
            if not any(name == prefix or name.startswith(f"{prefix}.") for prefix in allowed):
                found.append(name)
        elif outside is not None and top not in outside and top not in sys.stdlib_module_names:
            found.append(name)
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    assert violations(path.read_text(), path.relative_to(PACKAGE)) == []


@pytest.mark.parametrize(
    ("relative", "line"),
    [
        ("core/decode.py", "import numpy"),
        ("core/decode.py", "from swiftmask.models.maskgit import MaskGIT"),
        ("models/maskgit/network.py", "from swiftmask.models.mar import MAR"),
        ("models/maskgit/network.py", "from swiftmask.training.loop import train"),
        ("methods/caching/features.py", "from swiftmask.methods.shortcut import Shortcut"),
        ("methods/shortcut/loss.py", "from swiftmask import rewards"),
        ("training/loop.py", "from swiftmask.data.scenes import render"),
        ("data/scenes/world.py", "import swiftmask.rewards.scenes"),
        ("rewards/scenes.py", "from swiftmask.evaluate.scorers import RewardScorer"),
        ("fleet/shards.py", "from swiftmask.pipeline import Pipeline"),
        ("evaluate/speed.py", "def f():\n    from swiftmask.models.maskgit import MaskGIT"),
    ],
)
def test_this_test_can_fail(relative: str, line: str) -> None:
    assert violations(line, Path(relative)) != []


def test_allowed_imports_pass() -> None:
    assert violations("import torch\nimport math", Path("core/decode.py")) == []
    source = "from swiftmask.models.maskgit.codec import VQGAN\nimport safetensors"
    assert violations(source, Path("models/maskgit/weights.py")) == []
    source = "from swiftmask.models.maskgit import MaskGIT\nfrom swiftmask.methods.shortcut import Shortcut"
    assert violations(source, Path("recipes/x.py")) == []


def test_files_are_short() -> None:
    counts = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in sources()}
    assert {path: count for path, count in counts.items() if count > MAX_LINES} == {}


def prints(source: str) -> bool:
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return any(isinstance(call.func, ast.Name) and call.func.id == "print" for call in calls)


def test_only_the_command_line_prints() -> None:
    loud = [path for path in sources() if "cli" not in path.parts and prints(path.read_text())]
    assert loud == []
    assert prints("print(1)")


def test_torchvision_is_never_imported() -> None:
    for path in sources():
        names = list(imported(ast.parse(path.read_text())))
        assert not any(name.split(".")[0] == "torchvision" for name in names), path


def test_no_vague_file_names() -> None:
    assert not {path.stem for path in sources()} & {"utils", "misc", "helpers", "common"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["generate", "--help"],
        ["verify", "--help"],
        ["train", "--help"],
        ["compare", "--help"],
        ["bench", "report", "--help"],
        ["tune", "--help"],
    ],
)
def test_help_imports_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom swiftmask.cli import main\n"
        f"try:\n    main({arguments!r})\n"
        "except SystemExit as stop:\n    assert stop.code in (0, None), stop.code\n"
        "assert 'torch' not in sys.modules"
    )
    environment = {"PYTHONPATH": str(PACKAGE.parent), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "swiftmask" in done.stdout
