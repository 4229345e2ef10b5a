"""`swiftmask train`: settings from YAML files and from a user's own recipe file."""

from pathlib import Path

import pytest

from swiftmask.cli import main
from swiftmask.cli.overrides import config_file, leaves, override, read_config_file
from swiftmask.recipes import maskgit, tokenizer

_OWN = """
from dataclasses import replace
from swiftmask.recipes import maskgit

def recipe():
    return replace(maskgit.recipe(), size="tiny", data="products")
"""


@pytest.mark.parametrize("module", [maskgit, tokenizer])
def test_a_written_config_gives_the_same_recipe(module, tmp_path: Path) -> None:
    changed = override(module.recipe(), ["data=products/", "training.num_steps=7", "training.betas=0.5,0.9"])
    path = tmp_path / "config.yaml"
    path.write_text(config_file("name", changed))
    name, settings = read_config_file(path)
    assert name == "name"
    assert override(module.recipe(), settings) == changed


def run(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int | str | None, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["train", *arguments, "--dry-run"])
    out, err = capsys.readouterr()
    return ended.value.code, out, err


def test_what_is_typed_goes_before_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("recipe: maskgit\ndata: products/\ntraining:\n  num_steps: 5\n  batch_size: 4\n")
    code, out, _ = run("--config", str(path), "training.num_steps=9", capsys=capsys)
    assert code == 0
    assert {"training.num_steps=9", "training.batch_size=4", "data=products/"} <= set(out.splitlines())


def test_a_recipe_file_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.py"
    path.write_text(_OWN)
    code, out, _ = run(str(path), "steps=8", capsys=capsys)
    assert code == 0
    assert {"size=tiny", "data=products", "steps=8"} <= set(out.splitlines())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("- a\n- b\n", "mapping of settings"),
        ("data: [", "no YAML of settings"),
        ("data: a\ndata: b\n", "the key data is given twice"),
        ("training: {num_stepz: 3}\n", "unknown setting 'training.num_stepz'"),
        ("training: {num_steps: -3}\n", "num_steps must be"),
        ("training: {num_steps: many}\n", "training.num_steps expects"),
        ("recipe: tokenizer\n", "is of the recipe tokenizer, not of maskgit"),
        ("recipe: 3\n", "recipe must be a name"),
        ("", "mapping of settings"),
    ],
)
def test_a_wrong_file_is_one_line(
    content: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content)
    code, _, err = run("maskgit", "--config", str(path), capsys=capsys)
    assert code == 2
    assert said in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [("x = 1\n", "must define recipe()"), (None, "no such recipe file"), ("def recipe(:\n", "mine.py")],
)
def test_a_wrong_recipe_file_is_one_line(
    content: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.py"
    if content is not None:
        path.write_text(content)
    code, _, err = run(str(path), capsys=capsys)
    assert code == 2
    assert said in err and len(err.strip().splitlines()) == 1


def test_every_setting_is_written() -> None:
    text = config_file("maskgit", maskgit.recipe())
    assert "num_steps" in text and "!!python" not in text
    assert dict(leaves(maskgit.recipe()))["family"] == "maskgit"
