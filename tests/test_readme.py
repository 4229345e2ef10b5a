"""The tables of the README and the docs are those of the result files, number for number."""

import json
import re
import runpy
import shlex
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from swiftmask.cli import COMMANDS
from swiftmask.cli.errors import parse
from swiftmask.evaluate.report import model_card
from swiftmask.evaluate.summary import read_report
from swiftmask.evaluate.table import caption, further, headings, markdown_cells, table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
REPORTS = ROOT / "docs" / "reports"
README = (ROOT / "README.md").read_text()
PAGES = {
    "maskgit-scenes": "docs/results.md",
    "guidance/maskgit-scenes": "docs/guidance.md",
    "mar-scenes": "docs/marval.md",
    "meissonic-scenes": "docs/speed_rl.md",
    "sampling/meissonic-scenes": "docs/speed_rl.md",
    "facts/meissonic-scenes": "docs/speed_rl.md",
    "dimoo-scenes": "docs/lumina_dimoo.md",
    "sampling/dimoo-scenes": "docs/lumina_dimoo.md",
}
"""Where each table stands."""


def _shown_commands() -> list[str]:
    """Every `swiftmask ...` that the README and the docs show as a line of its own, or as several joined by
    backslashes."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    lines = [line for page in pages for line in page.read_text().replace("\\\n", " ").splitlines()]
    return sorted({match[1] for line in lines if (match := re.match(r"    swiftmask (.+)", line))})


@pytest.mark.parametrize("shown", _shown_commands())
def test_every_command_shown_can_be_given(
    shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs" / "shortcut" / "model").mkdir(parents=True)  # what the commands before it leave
    monkeypatch.chdir(tmp_path)
    words = shlex.split(shown, comments=True)
    name = next(name for name in (" ".join(words[:2]), words[0]) if name in COMMANDS)
    command = COMMANDS[name]
    command_class = getattr(import_module(f"swiftmask.cli.{command.module}"), command.name)
    parse(command_class, words[len(name.split()) :], prog=name)


@pytest.mark.parametrize("name", PAGES)
def test_the_quality_table_is_the_measured_one(name: str) -> None:
    report, page = read_report(RESULTS / name / "report.json"), (ROOT / PAGES[name]).read_text()
    assert markdown_cells(headings(report), table(report)) in page
    assert caption(report) in page
    assert all(text in page for text in further(report))


@pytest.mark.parametrize("name", PAGES)
def test_the_written_markdown_is_that_of_the_json(name: str) -> None:
    report = read_report(RESULTS / name / "report.json")
    assert (RESULTS / name / "report.md").read_text() == model_card(report)


@pytest.mark.parametrize("folder", sorted(REPORTS.iterdir()), ids=lambda folder: folder.name)
def test_the_report_page_shows_the_measured_rows(folder: Path) -> None:
    content, report = (folder / "report.html").read_text(), read_report(folder / "report.json")
    for row in table(report):
        assert f"<td>{row[1]}</td><td>{row[2]}</td>" in content, row[0]
    assert f"docs/reports/{folder.name}/report.html" in README
    assert report.command.endswith(f"--out docs/reports/{folder.name}")


@pytest.mark.parametrize(
    ("options", "page"),
    [([], "docs/methods.md"), (["--short"], "README.md")],
    ids=["docs", "README"],
)
def test_the_table_across_methods_is_that_of_the_results(
    options: list[str], page: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert printed_by("methods_table", options, capsys, monkeypatch) in (ROOT / page).read_text()


def printed_by(
    script: str, options: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> str:
    """What `python benchmarks/SCRIPT.py OPTIONS` prints."""
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *options])
    runpy.run_path(str(ROOT / "benchmarks" / f"{script}.py"), run_name="__main__")
    return capsys.readouterr().out


def test_the_speed_of_meissonic_is_the_measured_one() -> None:
    page = (ROOT / "docs" / "speed_rl.md").read_text()
    found = json.loads((RESULTS / "meissonic-1024-speed.json").read_text())
    for part in ("forward", "update"):
        cells = [
            f"{found[f'{part}_ms']:.0f}",
            f"{found[f'{part}_flops'] / 1e12:.2f}",
            f"{100 * found[f'{part}_peak_share']:.0f} %",
            f"{found[f'{part}_peak_memory_bytes'] / 2**30:.1f}",
        ]
        assert f"| {' | '.join(cells)} |" in page


def test_the_speed_of_lumina_dimoo_is_the_measured_one() -> None:
    page = (ROOT / "docs" / "lumina_dimoo.md").read_text()
    found = json.loads((RESULTS / "dimoo-speed.json").read_text())
    assert f"| {_dimoo_cells(found)} |" in page
    for batch in (1, 4):
        found = json.loads((RESULTS / f"dimoo-speed-2-layers-batch{batch}.json").read_text())
        assert f"| {batch} | {_dimoo_cells(found)} |" in page
    for row in json.loads((RESULTS / "dimoo-straightforward.json").read_text())["rows"]:
        cells = [f"{row['ours_ms']:.0f}", f"{row['straightforward_ms']:.0f}", f"{row['ratio']:.2f} x"]
        assert f" | {' | '.join(cells)} |" in page


def _dimoo_cells(report: dict[str, Any]) -> str:
    full = report["kinds"][0]
    cells = [f"{kind['ms']:.0f}" for kind in report["kinds"]]
    cells += [f"{100 * full['peak_share']:.0f} %", f"{full['peak_memory_bytes'] / 1e9:.1f}"]
    return " | ".join(cells)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_speed_table_is_the_measured_one(dtype: str) -> None:
    found = json.loads((RESULTS / f"maskgit-512-speed-{dtype}.json").read_text())
    full, shortcut = found["kinds"]
    speed = full["flops"] / (full["ms"] / 1000)
    cells = [
        dtype,
        f"{full['ms']:.0f}",
        f"{shortcut['ms']:.1f}",
        f"{shortcut['speedup']:.1f} x",
        f"{shortcut['decode_share']:.3f}",
        f"{speed / 1e12:.2f}",
        f"{found['matmul_peak_flops'] / 1e12:.2f}",
        f"{100 * full['peak_share']:.0f} %",
        f"{full['peak_memory_bytes'] / 2**30:.2f}",
    ]
    page = (ROOT / "docs" / "results.md").read_text()
    assert f"| {' | '.join(cells)} |" in page
    assert found["command"] in page


def test_the_placements_are_the_measured_ones() -> None:
    page = (ROOT / "docs" / "tuning.md").read_text()
    found = json.loads((RESULTS / "maskgit-scenes-placement.json").read_text())
    rows = {row["name"]: row for row in found["rows"]}
    assert f"{found['machine']}, commit {found['commit']}, {found['date']}" in page
    for fact in found["placements"]:
        row, drift = rows[fact["name"]], fact["drift"]
        cells = [str(row["full_steps"]), fact["placement"], " ".join(map(str, fact["full_steps_at"]))]
        cells += [f"{drift['feature-drift']:.2f}", f"{drift['token-drift']:.1f}"]
        cells += [
            f"{row['values'][key]['mean']:.{digits}f} ± {row['values'][key]['spread']:.{digits}f}"
            for key, digits in (("score", 3), ("fd_scenes", 1))
        ]
        assert f"| {' | '.join(cells)} |" in page


def test_the_tuning_is_the_measured_one() -> None:
    page = (ROOT / "docs" / "tuning.md").read_text()
    found = json.loads((RESULTS / "maskgit-scenes-speedup-2-tuning.json").read_text())
    for row in [*found["confirmed"], found["reference"]]:
        spreads = [row["values"][key] for key in ("score", "fd_scenes")]
        numbers = [f"{spread['mean']:.3f} ± {spread['spread']:.3f}" for spread in spreads]
        assert f"| {row['name']} | {row['gflop']:.2f} | {' | '.join(numbers)} |" in page
    assert f"commit {found['commit']}, {found['date']}" in page


@pytest.mark.parametrize("name", ["speed-rl-ablations", "speed-rl-noise"])
def test_the_tables_about_speed_rl_are_the_measured_ones(name: str) -> None:
    assert (RESULTS / f"{name}.md").read_text() in (ROOT / "docs" / "speed_rl.md").read_text()


def test_every_result_has_the_command_that_measures_it_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = printed_by("run", ["--list"], capsys, monkeypatch)
    names = [line.split()[1].rstrip(":") for line in listing.splitlines()]
    measured = [path.relative_to(RESULTS).with_suffix("") for path in RESULTS.rglob("*.json")]
    found = [str(path) for path in measured if not path.stem.endswith("-preset")]  # written beside its tuning
    pages = [f"reports/{path.parent.name}" for path in REPORTS.glob("*/report.json")]
    assert sorted(names) == sorted([*found, *pages])


@pytest.mark.parametrize(
    ("weights", "model", "series"),
    [
        ("maskgit-scenes", "maskgit-scenes", "vanilla"),
        ("maskgit-scenes-shortcut", "maskgit-scenes", "shortcut"),
        ("dimoo-scenes", "dimoo-scenes", "vanilla"),
        ("dimoo-scenes-shortcut", "dimoo-scenes", "shortcut"),
        ("mar-scenes", "mar-scenes", "vanilla"),
        ("meissonic-scenes", "meissonic-scenes", "vanilla"),
        ("meissonic-scenes-speed-rl", "meissonic-scenes", "meissonic-scenes-speed-rl"),
        ("mar-scenes-marval", "mar-scenes", "mar-scenes-marval"),
        ("mar-scenes-marval-rl", "mar-scenes", "mar-scenes-marval-rl"),
    ],
)
def test_what_bundled_weights_say_of_themselves_is_a_row_of_the_table(
    weights: str, model: str, series: str
) -> None:
    said = json.loads((ROOT / f"src/swiftmask/weights/{weights}/provenance.json").read_text())["measured"]
    rows = {row.name: row for row in read_report(RESULTS / model / "report.json").rows}
    budget = f":{said['full_steps']}" if "full_steps" in said else ""
    row = rows[f"{series}-{said['steps']}{budget}"]
    assert said["judge"] == pytest.approx(row.values["score"].mean, abs=5e-4)
    assert said["fd_scenes"] == pytest.approx(row.values["fd_scenes"].mean, abs=0.05)


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 170
