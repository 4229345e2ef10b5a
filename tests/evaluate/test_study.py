"""Rows under paired seeds: scorers, resuming, and the table that comes of it."""

import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from statistics import fmean

import pytest
import torch
from PIL import Image
from torch import Tensor

from swiftmask.data.scenes import CLASS_NAMES, World, class_scenes, render
from swiftmask.evaluate.extractors import Identity, Readings
from swiftmask.evaluate.feature_store import FeatureStore, describe
from swiftmask.evaluate.folder_metrics import MetricSettings
from swiftmask.evaluate.frontier import frontier_png, legend_columns, style_of
from swiftmask.evaluate.image_sets import ImageSet
from swiftmask.evaluate.processes import Processes
from swiftmask.evaluate.requests import SCENES, Requests, image_seeds
from swiftmask.evaluate.scenes_scorer import SceneScorer
from swiftmask.evaluate.scorers import (
    FeatureScorer,
    Generated,
    PixelScorer,
    RewardScorer,
    Scorer,
    TokenScorer,
)
from swiftmask.evaluate.sheets import side_by_side
from swiftmask.evaluate.study import Measurement, Row, Sample, Study
from swiftmask.evaluate.summary import (
    Origin,
    Report,
    at_cost,
    baseline_of,
    read_report,
    summarise,
    write_report,
)
from swiftmask.evaluate.table import headings, markdown, table
from swiftmask.rewards.scenes import load_judge

SAMPLE = Sample(num_images=20, num_seeds=2, batch_size=8)
ORIGIN = Origin(model="toy", commit="abc", date="2026-01-01", machine="a machine", command="swiftmask bench")
Calls = list[tuple[list[int], list[int]]]


def _row(
    name: str, noise: float = 0.0, flops: int = 1000, calls: Calls | None = None, **fields: object
) -> Row:
    """Generates the scenes themselves, spoilt by `noise`."""
    series, _, steps = name.partition("-")

    def generate(labels: list[int], seeds: list[int]) -> Generated:
        if calls is not None:
            calls.append((labels, seeds))
        images_B3HW = render(class_scenes(torch.tensor(labels), torch.tensor(seeds)))
        generator = torch.Generator().manual_seed(0)
        spoilt = images_B3HW + noise * torch.randn(images_B3HW.shape, generator=generator)
        tokens_BL = torch.tensor(seeds)[:, None] % 7 + torch.zeros(1, 4, dtype=torch.long)
        tokens_BL[:, 0] += int(noise > 0)
        return Generated(spoilt.clamp(0, 1), tokens_BL, 0.008)

    row = Row(
        name=name,
        series=series,
        steps=int(steps),
        full_steps=int(steps),
        calls={"backbone": int(steps)},
        flops=flops,
        fingerprint=f"{name}{noise}",
        generate=generate,
    )
    return replace(row, **fields)  # type: ignore[arg-type]


class _MeanColour:
    """An extractor of three features."""

    identity = Identity("toy", "0" * 64)

    def __call__(self, images_B3HW: Tensor) -> Readings:
        return {"features": images_B3HW.mean(dim=(2, 3))}


def _real(folder: Path) -> FeatureStore:
    images = render(class_scenes(torch.arange(40), 100 + torch.arange(40)))
    return describe(ImageSet(40, "real", lambda indices: images[list(indices)]), _MeanColour(), folder)


def _study(folder: Path, *scorers: Scorer, requests: Requests = SCENES) -> Study:
    return Study(requests=requests, scorers=scorers, folder=folder)


@pytest.fixture(scope="module")
def judge() -> SceneScorer:
    return SceneScorer(judge=load_judge(), requests=SCENES, size=64)


def test_images_are_paired_and_seeds_are_independent(tmp_path: Path) -> None:
    calls: Calls = []
    _study(tmp_path, TokenScorer()).measure([_row("vanilla-4", calls=calls)], replace(SAMPLE, first_seed=1))
    assert [len(labels) for labels, _ in calls] == [8, 8, 4] * 2
    assert [seed for _, seeds in calls[:3] for seed in seeds] == [1_000_003 + i for i in range(20)]
    spread = [i * len(CLASS_NAMES) // 20 for i in range(20)]  # fewer images than classes: not the first ones
    assert [label for labels, _ in calls[:3] for label in labels] == spread
    assert not set(image_seeds(0, 20)) & set(image_seeds(1, 20))


def test_real_scenes_score_one_and_noise_costs(judge: SceneScorer, tmp_path: Path) -> None:
    rows = [_row("vanilla-4"), _row("vanilla-8", noise=0.5)]
    clean, noisy = _study(tmp_path, judge).measure(rows, replace(SAMPLE, num_seeds=1))
    assert clean.values["score"] == pytest.approx(1.0, abs=0.03)
    assert noisy.values["score"] < clean.values["score"]
    assert noisy.values["fd_scenes"] > 2 * clean.values["fd_scenes"]
    assert clean.floors == noisy.floors
    assert 0 < clean.values["fd_scenes"] < 3 * clean.floors["fd_scenes"]
    assert clean.ms == pytest.approx(1.0)
    assert clean.peak_memory_bytes > 0
    kinds = [value for key, value in clean.values.items() if key.startswith("fact_")]
    assert fmean(kinds) == pytest.approx(clean.values["score"]), "three facts of a class, one of each kind"


def test_any_scorers_measure_in_one_pass_and_another_one_later(tmp_path: Path) -> None:
    """What only compares with the full model says nothing of the full model itself."""
    calls: Calls = []
    rows = [_row("vanilla-4", calls=calls), _row("shortcut-4", noise=0.1, reference="vanilla-4", calls=calls)]
    features = FeatureScorer(
        _MeanColour(),
        _real(tmp_path / "real"),
        "real",
        MetricSettings(splits=2),
        against_reference=True,
    )
    reward = RewardScorer(Identity("brightness", ""), lambda images, asked: images.mean(dim=(1, 2, 3)))
    sample = replace(SAMPLE, num_seeds=1)
    full, fast = _study(tmp_path, features, reward, TokenScorer(), PixelScorer()).measure(rows, sample)
    assert len(calls) == 6
    assert {"fd_toy", "kid_toy", "precision_toy", "brightness"} <= full.values.keys()
    assert not {"tokens_kept", "pixel_difference", "difference_toy"} & full.values.keys()
    assert fast.values["tokens_kept"] == 0.75
    assert 0 < fast.values["pixel_difference"] < 0.11
    assert 0 < fast.values["difference_toy"] < 0.1
    assert full.floors["fd_toy"] > 0
    loud = RewardScorer(Identity("loud", ""), lambda images, asked: images.amax(dim=(1, 2, 3)))
    _study(tmp_path, reward, loud).measure(rows, sample)
    assert len(calls) == 12, "only the new scorer read again"
    _study(tmp_path, loud, features).measure(rows, sample)
    assert len(calls) == 12


def test_a_reward_that_applies_to_no_image_is_refused(tmp_path: Path) -> None:
    nothing = RewardScorer(Identity("nothing", ""), lambda images, asked: [float("nan")] * len(asked))
    with pytest.raises(ValueError, match="nothing gave no image a score"):
        _study(tmp_path, nothing).measure([_row("vanilla-4")], SAMPLE)


def test_a_killed_study_continues(tmp_path: Path) -> None:
    calls: Calls = []

    def killed(labels: list[int], seeds: list[int]) -> Generated:
        raise KeyboardInterrupt

    first = _row("vanilla-4", calls=calls)
    second = _row("shortcut-4", noise=0.1, reference="vanilla-4")
    with pytest.raises(KeyboardInterrupt):
        _study(tmp_path, TokenScorer()).measure([first, replace(second, generate=killed)], SAMPLE)
    assert len(calls) == 3
    seen: list[tuple[str, int]] = []
    study = _study(tmp_path, TokenScorer())
    found = study.measure([first, second], SAMPLE, lambda row, count: seen.append((row, count)))
    assert len(calls) == 6, "the first seed of the first row was measured again"
    assert sum(count for _, count in seen) == 2 * 2 * 20
    assert found == _study(tmp_path, TokenScorer()).measure([first, second], SAMPLE)
    assert len(calls) == 6
    assert not list(tmp_path.rglob("*.partial"))
    _study(tmp_path, TokenScorer()).measure([replace(first, fingerprint="retrained")], SAMPLE)
    assert len(calls) == 12


def test_processes_divide_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Processes, "wait", lambda self: None)
    calls: Calls = []
    rows = [_row("vanilla-4", calls=calls), _row("vanilla-8", calls=calls)]
    for rank in (1, 0):
        study = replace(_study(tmp_path, TokenScorer(), PixelScorer()), processes=Processes(rank, 2))
        found = study.measure([replace(row, reference="vanilla-4") for row in rows], SAMPLE)
        assert len(calls) == 6 * (2 - rank), "half of four parts of three batches each"
        assert len(found) == (0 if rank else 4)


def test_complaints(tmp_path: Path) -> None:
    study = _study(tmp_path, TokenScorer())
    with pytest.raises(ValueError, match="must differ"):
        study.measure([_row("vanilla-4"), _row("vanilla-4")], SAMPLE)
    with pytest.raises(ValueError, match="no row is called vanilla-9"):
        study.measure([_row("vanilla-4", reference="vanilla-9")], SAMPLE)
    with pytest.raises(ValueError, match="at least 2 images"):
        Sample(num_images=1)


def test_a_list_says_the_first_seed_of_a_prompt() -> None:
    """The next images of it take the next seeds, and another evaluation seed is elsewhere."""
    requests = Requests(entries=("a", "b"), names=("a", "b"), first_seeds=(None, 70), diverse=True)
    assert requests.asked(0, 5) == ["a", "b", "a", "b", "a"]
    assert requests.seeds(0, 5) == [0, 70, 2, 71, 4]
    assert not set(requests.seeds(1, 5)) & set(requests.seeds(0, 5))
    assert requests.shown(2, 5) == (["a", "b"], [0, 70])
    asked, seeds = requests.varied(0, 5)
    assert asked == ["a"] * 4 + ["b"] * 4
    assert len({*seeds, *requests.seeds(0, 5)}) == 13
    assert replace(requests, diverse=False).varied(0, 5) == ([], [])


def test_captions_of_scenes_differ_by_evaluation_seed() -> None:
    requests = Requests(world=World())
    assert requests.asked(0, 8) != requests.asked(1, 8)
    assert requests.asked(0, 8)[:4] == requests.asked(0, 4)
    assert requests.text("a red circle") == "a red circle"
    assert SCENES.text(0) == SCENES.names[0]


@pytest.fixture(scope="module")
def report(judge: SceneScorer, tmp_path_factory: pytest.TempPathFactory) -> Report:
    rows = [
        _row("vanilla-4", noise=0.4, flops=10**9),
        _row("vanilla-8", flops=4 * 10**9),
        _row("shortcut-8", noise=0.1, flops=2 * 10**9, reference="vanilla-8", full_steps=4),
    ]
    study = _study(tmp_path_factory.mktemp("study"), judge, TokenScorer())
    return summarise(rows, study.measure(rows, SAMPLE), SAMPLE, ORIGIN, study.scorers)


def test_summary(report: Report, tmp_path: Path) -> None:
    fewest, most, shortcut = report.rows
    assert (report.N, report.seeds) == (20, 2)
    middle = (fewest.values["score"].mean + most.values["score"].mean) / 2
    assert shortcut.equal_cost["score"] == pytest.approx(middle)
    assert most.equal_cost == {}
    assert report.floors["fd_scenes"].mean > 0
    write_report(report, tmp_path / "report.json")
    assert read_report(tmp_path / "report.json") == report
    text = markdown(report)
    assert headings(report)[1:5] == (
        "judge score ↑",
        "fd_scenes ↓",
        "tokens kept ↑",
        "same cost, fewer steps",
    )
    assert table(report)[0][3] == "", "the full model has nothing to be compared with"
    assert "| row | count | shape | colour |" in text, "a class states nothing else"
    assert "N = 20" in text
    assert "Floor, real images against other real ones: fd_scenes" in text
    assert "FID" not in text
    (tmp_path / "report.json").write_text("[]")
    with pytest.raises(ValueError, match="expected a JSON object"):
        read_report(tmp_path / "report.json")


def test_what_a_row_must_beat_is_generated_the_same_way() -> None:
    series = ["vanilla", "unguided", "shortcut", "unguided+shortcut", "tuned+reuse"]
    curves = {name: [name] for name in series}
    assert baseline_of("vanilla", curves) == []
    assert baseline_of("shortcut", curves) == baseline_of("unguided", curves) == ["vanilla"]
    assert baseline_of("unguided+shortcut", curves) == ["unguided"]
    assert baseline_of("unguided+tuned+shortcut", curves) == ["unguided"]
    assert baseline_of("tuned+reuse", curves) == ["vanilla"]
    assert baseline_of("shortcut", {"shortcut": ["shortcut"]}) == []


def test_an_unguided_accelerator_is_held_against_unguided_steps(judge: SceneScorer) -> None:
    known = {"vanilla-2": 0.1, "vanilla-8": 0.3, "unguided-1": 0.5, "unguided-4": 0.7}
    scores = known | {"unguided+shortcut-2": 0.9, "shortcut-4": 0.8}
    rows = [_row(name, flops=int(name.partition("-")[2])) for name in scores]
    measured = [
        Measurement(
            row=name, seed=0, num_images=2, values={"score": score}, floors={}, ms=1.0, peak_memory_bytes=1
        )
        for name, score in scores.items()
    ]
    report = summarise(rows, measured, Sample(num_images=2, num_seeds=1), ORIGIN, [judge])
    found = {row.name: row.equal_cost.get("score") for row in report.rows}
    assert found["unguided+shortcut-2"] == pytest.approx(0.6)
    assert found["shortcut-4"] == found["unguided-4"] == pytest.approx(0.2)
    assert found["unguided-1"] is found["vanilla-2"] is None


def test_curve_between_and_outside_its_points() -> None:
    curve = [(1.0, 0.0), (4.0, 1.0)]
    assert at_cost(2.0, curve) == pytest.approx(0.5)
    assert at_cost(4.0, curve) == at_cost(4.01, curve) == 1.0
    assert at_cost(0.996, [(1.0, 0.25), (4.0, 1.0)]) == 0.25
    assert at_cost(0.99, curve) is at_cost(5.0, curve) is at_cost(1.0, []) is None


def test_a_legend_has_as_many_columns_as_fit_beside_each_other() -> None:
    assert legend_columns(["reuse", "shortcut"]) == 6
    assert legend_columns(["temperature-0.6+power-2+meissonic-scenes-speed-rl"] * 5) == 2
    assert legend_columns(["a" * 130]) == 1
    assert len({style_of(index) for index in range(25)}) == 25


def test_frontier_and_page(report: Report) -> None:
    from swiftmask.evaluate.report import html_report

    assert frontier_png(report).startswith(b"\x89PNG")
    page = html_report("A title", "A summary.", report)
    assert "http" not in page.replace("http-equiv", "")
    data = json.loads(page.partition('id="report-data">')[2].partition("</script>")[0])
    assert [quantity["key"] for quantity in data["quantities"]] == ["score", "fd_scenes"]
    assert [row["name"] for row in data["rows"]] == [row.name for row in report.rows]


def test_sheets() -> None:
    images_B3HW: Tensor = torch.rand(3, 3, 8, 8)
    sheet = Image.open(BytesIO(side_by_side([images_B3HW, images_B3HW], scale=2)))
    assert sheet.size == (3 * 20 + 4, 2 * 20 + 4)
    with pytest.raises(ValueError, match="equal images"):
        side_by_side([images_B3HW, images_B3HW[:2]])
