"""Rows under paired seeds: pairing, resuming, refusing, and the table that comes of it."""

import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
import torch
from torch import Tensor

from swiftmask.data.scenes import class_scenes, render
from swiftmask.evaluate.frontier import frontier_png, legend_columns, style_of
from swiftmask.evaluate.quality import (
    Draw,
    Drawn,
    Measurement,
    RealPictures,
    Row,
    Sample,
    measure,
    picture_labels,
    picture_seeds,
)
from swiftmask.evaluate.quality_table import fact_table, markdown
from swiftmask.evaluate.study import Store, run_study
from swiftmask.evaluate.summary import (
    Origin,
    QualityReport,
    at_cost,
    read_report,
    rival_of,
    summarise,
    write_report,
)
from swiftmask.rewards.scenes import load_judge

SAMPLE = Sample(num_pictures=20, num_seeds=2, batch_size=8)
ORIGIN = Origin(model="toy", commit="abc", date="2026-01-01", machine="a machine", command="swiftmask bench")


def _painter(noise: float, calls: list[tuple[list[int], list[int]]] | None = None) -> Draw:
    """Draws the scenes themselves, spoilt by `noise`."""

    def draw(labels: list[int], seeds: list[int]) -> Drawn:
        if calls is not None:
            calls.append((labels, seeds))
        images_B3HW = render(class_scenes(torch.tensor(labels), torch.tensor(seeds)))
        spoilt = images_B3HW + noise * torch.randn(
            images_B3HW.shape, generator=torch.Generator().manual_seed(0)
        )
        tokens_BL = torch.tensor(seeds)[:, None] % 7 + torch.zeros(1, 4, dtype=torch.long)
        tokens_BL[:, 0] += int(noise > 0)
        return Drawn(spoilt.clamp(0, 1), tokens_BL, 0.008)

    return draw


def _row(name: str, noise: float = 0.0, flops: int = 1000, **fields: object) -> Row:
    series, _, steps = name.partition("-")
    row = Row(
        name=name,
        series=series,
        steps=int(steps),
        full_steps=int(steps),
        calls={"backbone": int(steps)},
        flops=flops,
        command=f"swiftmask evaluate --steps {steps}",
        fingerprint=f"{name}{noise}",
        draw=_painter(noise),
    )
    return replace(row, **fields)  # type: ignore[arg-type]


def _measurement(row: Row, score: float) -> Measurement:
    return Measurement(
        row=row.name,
        fingerprint=row.fingerprint,
        seed=0,
        num_pictures=2,
        batch_size=2,
        score=score,
        fd_scenes=1.0,
        floor=1.0,
        agreement=None,
        ms_per_picture=1.0,
        peak_memory_bytes=1,
    )


@pytest.fixture(scope="module")
def real() -> RealPictures:
    return RealPictures(load_judge())


def test_pictures_are_paired_and_seeds_are_independent(real: RealPictures) -> None:
    calls: list[tuple[list[int], list[int]]] = []
    measure(_row("vanilla-4", draw=_painter(0, calls)), 1, SAMPLE, real)
    assert [len(labels) for labels, _ in calls] == [8, 8, 4]
    assert [seed for _, seeds in calls for seed in seeds] == [1_000_003 + i for i in range(20)]
    assert [label for labels, _ in calls for label in labels] == picture_labels(20) == list(range(20))
    assert not set(picture_seeds(0, 20)) & set(picture_seeds(1, 20))


def test_real_scenes_score_one_and_noise_costs(real: RealPictures) -> None:
    clean, _ = measure(_row("vanilla-4"), 0, SAMPLE, real)
    noisy, _ = measure(_row("vanilla-4", noise=0.5), 0, SAMPLE, real)
    assert clean.score == pytest.approx(1.0, abs=0.03)
    assert noisy.score < clean.score
    assert noisy.fd_scenes > 2 * clean.fd_scenes
    assert clean.floor == noisy.floor > 0
    assert clean.fd_scenes < 3 * clean.floor
    assert clean.ms_per_picture == pytest.approx(1.0)
    assert clean.peak_memory_bytes > 0


def test_agreement_with_the_reference(real: RealPictures, tmp_path: Path) -> None:
    rows = [_row("shortcut-4", noise=0.1, reference="vanilla-4"), _row("vanilla-4")]
    found = run_study(rows, SAMPLE, Store(tmp_path, "m"), real)
    by_row = {m.row: m.agreement for m in found}
    assert by_row == {"vanilla-4": None, "shortcut-4": 0.75}


def test_a_killed_study_continues(real: RealPictures, tmp_path: Path) -> None:
    counter: list[tuple[list[int], list[int]]] = []

    def killed(labels: list[int], seeds: list[int]) -> Drawn:
        raise KeyboardInterrupt

    first = _row("vanilla-4", draw=_painter(0, counter))
    second = _row("shortcut-4", noise=0.1, reference="vanilla-4")
    with pytest.raises(KeyboardInterrupt):
        run_study([first, replace(second, draw=killed)], SAMPLE, Store(tmp_path, "m"), real)
    assert len(counter) == 3
    seen: list[tuple[str, int]] = []
    store = Store(tmp_path, "m")
    found = run_study([first, second], SAMPLE, store, real, lambda row, count: seen.append((row, count)))
    assert len(counter) == 6, "the first seed of the first row was measured again"
    assert sum(count for _, count in seen) == 2 * 2 * 20
    assert found == run_study([first, second], SAMPLE, store, real)
    assert len(counter) == 6
    assert not list(tmp_path.glob("*.partial"))


def test_a_report_says_when_each_of_its_rows_was_measured(real: RealPictures, tmp_path: Path) -> None:
    first, second = _row("vanilla-4"), _row("vanilla-8")
    run_study([first], SAMPLE, Store(tmp_path, "m", commit="1a", date="2026-01-01"), real)
    later = Store(tmp_path, "m", commit="2b", date="2026-01-02")
    found = run_study([first, second], SAMPLE, later, real)
    report = summarise([first, second], found, SAMPLE, ORIGIN)
    assert (report.commit, report.date) == ("1a, 2b", "2026-01-01, 2026-01-02")
    assert found == run_study([first, second], SAMPLE, Store(tmp_path, "m", commit="3c"), real)


def test_other_weights_are_not_mixed(real: RealPictures, tmp_path: Path) -> None:
    rows = [_row("vanilla-4")]
    run_study(rows, SAMPLE, Store(tmp_path, "maskgit abc"), real)
    with pytest.raises(ValueError, match="another model .*abc.*def.*--out"):
        run_study(rows, SAMPLE, Store(tmp_path, "maskgit def"), real)
    counter: list[tuple[list[int], list[int]]] = []
    retrained = _row("vanilla-4", fingerprint="new", draw=_painter(0, counter))
    run_study([retrained], SAMPLE, Store(tmp_path, "maskgit abc"), real)
    assert len(counter) == 6


def _stored(folder: Path, names: list[str]) -> tuple[Store, list[bytes]]:
    store = Store(folder, "m")
    for name in names:
        store.add(_measurement(_row(name), 0.5))
    return store, store.path.read_bytes().splitlines(keepends=True)


def test_a_torn_last_line_costs_that_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, lines = _stored(tmp_path, ["vanilla-4", "vanilla-8"])
    head, last = b"".join(lines[:-1]), lines[-1]
    for kept in range(len(last) + 1):
        caplog.clear()
        store = Store(tmp_path, "m")
        store.path.write_bytes(head + last[:kept])
        is_whole = kept >= len(last) - 1  # without its line end, at most
        for _ in range(2):
            assert [m.row for m in store.read()] == ["vanilla-4", "vanilla-8"][: 1 + is_whole]
        assert len(caplog.messages) == (0 < kept and not is_whole)
        assert all(f"{store.path}: skipped damaged lines (3)" in said for said in caplog.messages)
        store.add(_measurement(_row("vanilla-16"), 0.5))
        written = store.path.read_bytes()
        assert len([json.loads(line) for line in written.splitlines()]) == 3 + is_whole
        assert written.endswith(b"}\n")


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff\x00\x80",
        b"[" * 100_000,
        b"null",
        b"[1]",
        b"{}",
        b'{"row": "vanilla-8"}',
        b'{"row": "\xe2\x80\xa8',
        (b'"score": 0.5', b'"score": "0.5"'),
        (b'"score": 0.5', b'"score": NaN'),
        (b'"score": 0.5', b'"score": 1e999'),
        (b'"score": 0.5', b'"score": true'),
        (b'"seed": 0', b'"seed": 0.5'),
        (b'"row": "vanilla-8"', b'"row": ["vanilla-8"]'),
        (b'"score"', b'"scor"'),
    ],
)
def test_garbage_costs_its_line(
    garbage: bytes | tuple[bytes, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, lines = _stored(tmp_path, ["vanilla-4", "vanilla-8", "vanilla-16"])
    bad = garbage if isinstance(garbage, bytes) else lines[2].strip().replace(*garbage)
    assert bad != lines[2].strip()
    store.path.write_bytes(b"".join([*lines[:2], bad + b"\n", lines[3]]))
    assert [m.row for m in store.read()] == ["vanilla-4", "vanilla-16"]
    assert len(caplog.messages) == 1
    store.path.write_bytes(b"".join([bad + b"\n", *lines[1:]]))
    assert [m.row for m in store.read()] == ["vanilla-4", "vanilla-8", "vanilla-16"]
    assert "lines (1)" in caplog.messages[-1]


def test_only_the_rows_of_damaged_lines_are_measured_again(real: RealPictures, tmp_path: Path) -> None:
    counters: list[list[tuple[list[int], list[int]]]] = [[], []]
    rows = [_row(f"vanilla-{4 * i + 4}", draw=_painter(0, counters[i])) for i in range(2)]
    rows.append(_row("shortcut-4", noise=0.1, reference="vanilla-4"))
    sample, store = replace(SAMPLE, num_seeds=1), Store(tmp_path, "m")
    found = run_study(rows, sample, store, real)
    lines = store.path.read_text().splitlines(keepends=True)
    store.path.write_text("".join([*lines[:2], lines[2][:40], *lines[3:]]))  # and its line end
    again = run_study(rows, sample, Store(tmp_path, "m"), real)
    assert [m.score for m in again] == [m.score for m in found]
    assert [len(counter) for counter in counters] == [3, 6]
    (tokens,) = tmp_path.glob("tokens-*.npy")
    tokens.write_bytes(tokens.read_bytes()[:-5])
    assert [m.agreement for m in run_study(rows, sample, store, real)] == [m.agreement for m in found]
    assert [len(counter) for counter in counters] == [6, 6]


def test_complaints(real: RealPictures, tmp_path: Path) -> None:
    store = Store(tmp_path, "m")
    with pytest.raises(ValueError, match="must differ"):
        run_study([_row("vanilla-4"), _row("vanilla-4")], SAMPLE, store, real)
    with pytest.raises(ValueError, match="no row is called vanilla-9"):
        run_study([_row("vanilla-4", reference="vanilla-9")], SAMPLE, store, real)
    store.path.write_text("{")
    with pytest.raises(ValueError, match="remove it to start anew"):
        store.read()
    with pytest.raises(ValueError, match="at least 2 images"):
        Sample(num_pictures=1)


@pytest.fixture(scope="module")
def report(real: RealPictures, tmp_path_factory: pytest.TempPathFactory) -> QualityReport:
    rows = [
        _row("vanilla-4", noise=0.4, flops=10**9),
        _row("vanilla-8", flops=4 * 10**9),
        _row("shortcut-8", noise=0.1, flops=2 * 10**9, reference="vanilla-8", full_steps=4),
    ]
    found = run_study(rows, SAMPLE, Store(tmp_path_factory.mktemp("study"), "m"), real)
    return summarise(rows, found, SAMPLE, ORIGIN)


def test_summary(report: QualityReport, tmp_path: Path) -> None:
    fewest, most, shortcut = report.rows
    assert (report.N, report.seeds) == (20, 2)
    assert shortcut.equal_cost_score == pytest.approx((fewest.score.mean + most.score.mean) / 2)
    assert most.equal_cost_score is None
    assert report.floor.mean > 0
    write_report(report, tmp_path / "report.json")
    assert read_report(tmp_path / "report.json") == report
    keys = {"model", "commit", "date", "machine", "N", "seeds", "floor", "rows"}
    assert keys <= set(json.loads((tmp_path / "report.json").read_text()))
    text = markdown(report)
    assert "N = 20" in text
    assert "floor" in text
    assert all(f"`{row.command}`" in text for row in report.rows)
    assert "FID" not in text


def test_facts_are_told_by_their_kind(report: QualityReport) -> None:
    """Their shares, weighted by how many are stated, are the score: three of a class, one of each kind."""
    facts = fact_table(report)
    assert facts is not None
    assert facts.headings == ("row", "count", "shape", "colour"), "a class states nothing else"
    for row in report.rows:
        assert row.by_kind is not None
        assert fmean(spread.mean for spread in row.by_kind.values()) == pytest.approx(row.score.mean)
    assert "| row | count | shape | colour |" in markdown(report)
    older = replace(report, rows=[*report.rows[1:], replace(report.rows[0], by_kind=None)])
    assert fact_table(older) is None
    assert "shape" not in markdown(older)


def test_what_a_row_must_beat_is_drawn_the_same_way() -> None:
    series = ["vanilla", "unguided", "shortcut", "unguided+shortcut", "tuned+reuse"]
    curves = {name: [name] for name in series}
    assert rival_of("vanilla", curves) == []
    assert rival_of("shortcut", curves) == rival_of("unguided", curves) == ["vanilla"]
    assert rival_of("unguided+shortcut", curves) == ["unguided"]
    assert rival_of("unguided+tuned+shortcut", curves) == ["unguided"]
    assert rival_of("tuned+reuse", curves) == ["vanilla"]
    assert rival_of("shortcut", {"shortcut": ["shortcut"]}) == []


def test_an_unguided_accelerator_is_held_against_unguided_steps() -> None:
    known = {"vanilla-2": 0.1, "vanilla-8": 0.3, "unguided-1": 0.5, "unguided-4": 0.7}
    scores = known | {"unguided+shortcut-2": 0.9, "shortcut-4": 0.8}
    rows = [_row(name, flops=int(name.partition("-")[2])) for name in scores]
    measured = [_measurement(row, scores[row.name]) for row in rows]
    report = summarise(rows, measured, Sample(num_pictures=2, num_seeds=1), ORIGIN)
    found = {row.name: row.equal_cost_score for row in report.rows}
    assert found["unguided+shortcut-2"] == pytest.approx(0.6)
    assert found["shortcut-4"] == found["unguided-4"] == pytest.approx(0.2)
    assert found["unguided-1"] is found["vanilla-2"] is None


def test_curve_between_and_outside_its_points() -> None:
    curve = [(1.0, 0.0), (4.0, 1.0)]
    assert at_cost(2.0, curve) == pytest.approx(0.5)
    assert at_cost(4.0, curve) == 1.0
    assert at_cost(0.5, curve) is None
    assert at_cost(5.0, curve) is None


def test_a_hair_beyond_a_curve_is_at_its_end() -> None:
    curve = [(1.0, 0.25), (4.0, 1.0)]
    assert at_cost(0.996, curve) == 0.25
    assert at_cost(4.01, curve) == 1.0
    assert at_cost(0.99, curve) is at_cost(1.0, []) is None


def test_a_legend_has_as_many_columns_as_fit_beside_each_other() -> None:
    assert legend_columns(["reuse", "shortcut"]) == 6
    assert legend_columns(["temperature-0.6+power-2+meissonic-scenes-speed-rl"] * 5) == 2
    assert legend_columns(["a" * 130]) == 1


def test_many_methods_look_different() -> None:
    styles = [style_of(index) for index in range(25)]
    assert len(set(styles)) == 25


def test_frontier_is_a_png(report: QualityReport) -> None:
    assert frontier_png(report).startswith(b"\x89PNG")


def test_a_report_page_stands_alone(report: QualityReport) -> None:
    from swiftmask.evaluate.report import Picture, html_report

    picture = Picture(heading="Grid", png=frontier_png(report), alt="<plot>", caption="a & b")
    page = html_report("A title", "A summary.", report, [picture])
    assert "http" not in page.replace("http-equiv", "")
    assert 'src="data:image/png;base64,' in page
    assert "prefers-color-scheme: dark" in page
    assert "a &amp; b" in page
    assert "&lt;plot&gt;" in page
    assert all(row.command in page for row in report.rows)


def test_two_processes_keep_each_others_measurements(tmp_path: Path, real: RealPictures) -> None:
    first, second = Store(tmp_path, "m"), Store(tmp_path, "m")
    found = run_study([_row("vanilla-4")], SAMPLE, first, real)
    other = replace(found[0], row="vanilla-8")
    assert second.add(other) == [*found, other] == first.read()
    assert second.add(found[0]) == [*found, other], "measured twice, kept once"


def test_sheets() -> None:
    from io import BytesIO

    from PIL import Image

    from swiftmask.evaluate.sheets import side_by_side

    images_B3HW: Tensor = torch.rand(3, 3, 8, 8)
    sheet = Image.open(BytesIO(side_by_side([images_B3HW, images_B3HW], scale=2)))
    assert sheet.size == (3 * 20 + 4, 2 * 20 + 4)
    with pytest.raises(ValueError, match="equal images"):
        side_by_side([images_B3HW, images_B3HW[:2]])
