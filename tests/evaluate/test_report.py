"""The report: what it concludes, what it escapes, what it refuses; its scripts run in tests/browser."""

import base64
import json
import re
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from swiftmask.core.decode import FullFeatures, decode, prepare_condition
from swiftmask.core.protocol import MaskedGenerator, SamplingOptions
from swiftmask.core.rng import SeededNoise
from swiftmask.evaluate.extractors import Description, Identity
from swiftmask.evaluate.feature_store import describe
from swiftmask.evaluate.folder_metrics import MetricSettings
from swiftmask.evaluate.pictures import Pictures
from swiftmask.evaluate.quality import Drawn, Row, Sample
from swiftmask.evaluate.report import (
    FolderReport,
    Gallery,
    Timeline,
    TimelineRecorder,
    comparison_of,
    findings,
    html_report,
    model_card,
    picture_uri,
)
from swiftmask.evaluate.report.folder_study import Asked, Reference, run_folder_study
from swiftmask.evaluate.report.folder_table import higher_is_better
from swiftmask.evaluate.report.timeline import DECIDED
from swiftmask.evaluate.summary import Origin, QualityReport, RowSummary, Spread
from swiftmask.models.mar import MAR
from swiftmask.models.maskgit import MaskGIT

HOSTILE = "</script><b>&amp;"
SAMPLE = Sample(num_pictures=12, num_seeds=2, batch_size=5)
ORIGIN = Origin(model="toy", commit="abc", date="2026-01-01", machine="a machine", command="swiftmask bench")


def _summary(name: str, gflop: float, score: float, spread: float = 0.0) -> RowSummary:
    series, _, budget = name.partition("-")
    steps, _, full_steps = budget.partition(":")
    return RowSummary(
        name=name,
        series=series,
        steps=int(steps),
        full_steps=int(full_steps or steps),
        calls={"backbone": int(full_steps or steps), "head": int(steps)},
        gflop_per_picture=gflop,
        score=Spread(score, spread),
        fd_scenes=Spread(10.0, 0.0),
        agreement=None,
        ms_per_picture=gflop,
        peak_memory_bytes=10**6,
        equal_cost_score=None,
        equal_cost_fd_scenes=None,
        command=f"swiftmask evaluate {HOSTILE}",
    )


def _report(*rows: RowSummary) -> QualityReport:
    return QualityReport(
        model=HOSTILE,
        commit="abc",
        date="2026-01-01",
        machine="a machine",
        N=20,
        seeds=2,
        batch_size=10,
        floor=Spread(2.0, 0.1),
        command="swiftmask bench report",
        rows=list(rows),
    )


FULL, FEWER = _summary("vanilla-16", 8.0, 0.95), _summary("vanilla-4", 2.0, 0.70, 0.02)


@pytest.mark.parametrize(
    ("score", "verdict"),
    [
        (0.9, "it beats the best of fewer steps alone, vanilla-4"),
        (0.71, "no difference beyond the spread from the best of fewer steps alone"),
        (0.5, "it does not beat the best of fewer steps alone"),
    ],
)
def test_fewer_steps_are_what_an_accelerator_must_beat(score: float, verdict: str) -> None:
    fast, dear = _summary("shortcut-16:4", 3.0, score), _summary("shortcut-16:12", 7.0, 0.95)
    text = findings(comparison_of(_report(FULL, FEWER, fast, dear)))
    assert verdict in text
    assert "shortcut-16:4" in text
    assert "2.7 times fewer" in text


def test_one_evaluation_seed_has_no_winner() -> None:
    fast = _summary("shortcut-16:4", 3.0, 0.9)
    text = findings(comparison_of(replace(_report(FULL, FEWER, fast), seeds=1)))
    assert "no difference that one evaluation seed can show from the best of fewer steps alone" in text


@pytest.mark.parametrize("name", ["unguided-16", "temperature_0.7-8", "unguided+power_2-8", "ddim-8"])
def test_other_sampling_is_no_acceleration(name: str) -> None:
    """Rows of the full model that sample otherwise are named as what they are, and win as such."""
    other = replace(_summary(name, 3.0, 0.93), series=name.rpartition("-")[0].replace("_", "-"))
    text = findings(comparison_of(_report(FULL, FEWER, other)))
    assert "No accelerated row costs half of that or less. With other sampling alone" in text
    fast = _summary("shortcut-16:4", 3.0, 0.9)
    comparison = comparison_of(_report(FULL, FEWER, fast, other))
    text = findings(comparison)
    assert "the best accelerated row is shortcut-16:4" in text
    assert f"With other sampling alone, {name} has 0.93 at 3 GFLOP; it beats shortcut-16:4." in text
    picked = comparison.picked()
    assert picked is not None
    assert picked.name == "shortcut-16:4"
    both = replace(_summary("shortcut-16:4", 3.0, 0.9), series="unguided+shortcut")
    assert comparison_of(_report(both)).points[0].accelerated


def test_less_work_in_more_time_is_said() -> None:
    fast = replace(_summary("shortcut-16:4", 3.0, 0.9), ms_per_picture=9.0)
    text = findings(comparison_of(_report(FULL, FEWER, fast)))
    assert "2.7 times fewer), but no faster on this machine (9 ms against 8 ms)" in text


def test_findings_say_what_fewer_steps_give_at_equal_cost() -> None:
    fast = replace(_summary("shortcut-16:4", 3.0, 0.9), equal_cost_score=0.7654)
    text = findings(comparison_of(_report(FULL, FEWER, fast)))
    assert text.endswith(" Fewer steps alone at the cost of shortcut-16:4 would have 0.765 (interpolated).")


def test_findings_without_a_full_model_or_an_affordable_row() -> None:
    fast = _summary("shortcut-16:12", 7.0, 0.95)
    assert "No accelerated row" in findings(comparison_of(_report(FULL, FEWER, fast)))
    assert "no row of fewer steps alone" in findings(
        comparison_of(_report(FULL, _summary("shortcut-16:4", 3.0, 0.9)))
    )
    alone = comparison_of(_report(fast))
    assert findings(alone).startswith("1 rows of")
    assert alone.picked() is not None


def test_the_row_shown_first_is_the_best_at_half_the_cost() -> None:
    rows = (_summary("reuse-16:4", 3.0, 0.5), _summary("shortcut-16:4", 3.0, 0.9))
    picked = comparison_of(_report(FULL, *rows, _summary("shortcut-16:12", 7.0, 0.95))).picked()
    assert picked is not None
    assert picked.name == "shortcut-16:4"


def test_nothing_of_the_user_becomes_markup() -> None:
    page = html_report(HOSTILE, HOSTILE, _report(FULL), gallery=Gallery(captions=(), images={}))
    assert HOSTILE not in page
    assert "<b>" not in page
    block = re.search(r'<script type="application/json" id="report-data">(.*?)</script>', page, re.DOTALL)
    assert block is not None
    data = json.loads(block[1])
    assert data["rows"][0]["command"] == FULL.command
    assert HOSTILE in data["markdown"]


def test_the_page_asks_the_network_for_nothing() -> None:
    page = html_report("A title", "A summary.", _report(FULL))
    assert "default-src 'none'" in page
    assert not re.search(r"https?:|@import|url\(", page)
    assert page.count("<script") == page.count("</script>") == 2


def test_the_model_card_has_table_caption_and_commands() -> None:
    card = model_card(comparison_of(_report(FULL, FEWER)))
    assert card.startswith("## Quality and cost of")
    assert "| vanilla-16 | 0.950" in card
    assert "N = 20" in card
    assert card.count(f"`{FULL.command}`") == 2


def test_kinds_of_facts_have_a_table_where_they_were_measured() -> None:
    known = replace(FULL, by_kind={"count": Spread(0.9, 0.01), "shape": Spread(0.5, 0.02)})
    report = _report(known)
    for text in (html_report("title", "", report), model_card(comparison_of(report))):
        assert "0.500 ± 0.020" in text
    assert "By kind of fact" not in html_report("title", "", _report(FULL))


def test_a_gallery_has_every_picture_of_every_row() -> None:
    with pytest.raises(ValueError, match=r"one image per caption \(2\): fast has 1"):
        Gallery(captions=("a", "b"), images={"full": ("x", "y"), "fast": ("x",)})


def test_small_pictures_are_kept_exactly_and_large_ones_small() -> None:
    image_3HW = torch.rand(3, 12, 20)
    kind, kept = _decoded(picture_uri(image_3HW))
    assert kind == "png"
    assert torch.equal(kept, (image_3HW * 255).round().byte())
    kind, large = _decoded(picture_uri(torch.rand(3, 256, 256)))
    assert (kind, large.shape) == ("jpeg", (3, 256, 256))
    assert _decoded(picture_uri(image_3HW, at_most=10))[1].shape == (3, 6, 10)


def _decoded(uri: str) -> tuple[str, Tensor]:
    head, _, data = uri.partition(";base64,")
    image = Image.open(BytesIO(base64.b64decode(data)))
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return head.rpartition("/")[2], pixels.reshape(image.height, image.width, 3).permute(2, 0, 1)


def _timeline(model: MaskedGenerator) -> Timeline:
    schedule = model.schedule(3, num_masked=model.spec.num_tokens, options=SamplingOptions())
    noise, canvas = SeededNoise([0], model.spec.num_tokens, model.device), model.blank(1)
    recorder = TimelineRecorder(model)
    decode(
        model,
        prepare_condition(model, model.encode([1]), schedule),
        schedule,
        noise,
        canvas=canvas,
        features_fn=FullFeatures(model),
        unmask=model.unmask_rule(canvas, noise),
        on_step=recorder,
    )
    return recorder.timeline("vanilla-3")


def test_a_timeline_follows_the_decode(golden_maskgit: MaskGIT) -> None:
    timeline = _timeline(golden_maskgit)
    assert timeline.grid == (4, 4)
    assert sum(moment.num_decided for moment in timeline.moments) == 16
    masked = 16
    for moment in timeline.moments:
        assert moment.confidence is not None
        asked = [percent for percent in moment.confidence if percent != DECIDED]
        assert len(asked) == masked
        assert all(100 / 32 - 1 <= percent <= 100 for percent in asked)
        masked = moment.num_masked
    assert masked == 0
    grey = round(0.55 * 255)
    first, last = (_decoded(timeline.moments[index].frame)[1] for index in (0, -1))
    assert (first == grey).all(dim=0).float().mean() >= timeline.moments[0].num_masked / 16
    assert not (last == grey).all()


def test_a_head_that_cannot_score_has_no_confidence(golden_mar: MAR) -> None:
    moments = _timeline(golden_mar).moments
    assert [moment.confidence for moment in moments] == [None] * 3


class _MeanColour:
    """An extractor of three features."""

    identity = Identity("toy", "0" * 64)

    def __call__(self, images_B3HW: Tensor) -> Description:
        return Description(images_B3HW.mean(dim=(2, 3)))


def _painted(name: str, noise: float, flops: int, asked: list[list[int]]) -> Row:
    def draw(what: list[int], seeds: list[int]) -> Drawn:
        asked.append(what)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        images = [torch.rand(3, 2, 2, generator=g) * noise + 0.1 for g in generators]
        return Drawn(torch.stack(images), torch.zeros(len(seeds), 4), 0.008)

    series, _, steps = name.partition("-")
    return Row(
        name=name,
        series=series,
        steps=int(steps),
        full_steps=int(steps),
        calls={"backbone": int(steps)},
        flops=flops,
        command=f"swiftmask bench report --only {name}",
        fingerprint=f"{name}{noise}",
        draw=draw,
    )


def _studied(rows: list[Row], folder: Path, seen: list[tuple[str, int]] | None = None) -> FolderReport:
    real = Pictures(40, "real", lambda indices: torch.rand(len(indices), 3, 2, 2) * 0.5 + 0.1)
    reference = describe(real, _MeanColour(), folder / "real")
    report = run_folder_study(
        rows,
        SAMPLE,
        Reference(name="real", real=reference, extractor=_MeanColour(), settings=MetricSettings(splits=2)),
        folder,
        requests=Asked([3, 4, 5]),
        origin=ORIGIN,
        on_progress=lambda row, count: None if seen is None else seen.append((row, count)),
    )
    assert report is not None
    return report


def test_rows_against_a_folder_resume(tmp_path: Path) -> None:
    asked: list[list[int]] = []
    rows = [
        _painted("vanilla-4", 0.8, 10**9, asked),
        _painted("vanilla-16", 0.5, 4 * 10**9, asked),
        _painted("reuse-8", 0.5, 2 * 10**9, asked),
    ]
    report = _studied(rows, tmp_path)
    assert asked[:3] == [[3, 4, 5, 3, 4], [5, 3, 4, 5, 3], [4, 5]]
    drawn = len(asked)
    seen: list[tuple[str, int]] = []
    assert _studied(rows, tmp_path, seen) == report
    assert len(asked) == drawn
    assert sum(count for _, count in seen) == 3 * 2 * 12
    fewest, most, reuse = report.rows
    assert report.metrics[0] == "fd_toy"
    assert report.floor_pictures == 12
    assert most.metrics == reuse.metrics
    assert fewest.metrics["fd_toy"].mean > most.metrics["fd_toy"].mean
    middle = (fewest.metrics["fd_toy"].mean + most.metrics["fd_toy"].mean) / 2
    assert reuse.equal_cost == pytest.approx(middle)
    assert most.equal_cost is None
    assert most.ms_per_picture == pytest.approx(1.6, rel=0.01)
    damaged = next(tmp_path.glob("reuse-8-*/cost.json"))
    damaged.write_text("{")
    with pytest.raises(ValueError, match=r"cost\.json is damaged"):
        _studied(rows, tmp_path)
    damaged.unlink()
    _studied(rows, tmp_path)
    assert len(asked) == drawn + 1, "only the time is measured again"


def test_other_requests_are_drawn_anew(tmp_path: Path) -> None:
    asked: list[list[int]] = []
    row = _painted("vanilla-4", 0.5, 10**9, asked)
    _studied([row], tmp_path)
    drawn = len(asked)
    _studied([replace(row, fingerprint="retrained")], tmp_path)
    assert len(asked) == 2 * drawn


def test_a_folder_report_becomes_page_and_card(tmp_path: Path) -> None:
    report = _studied([_painted("vanilla-4", 0.5, 10**9, [])], tmp_path)
    comparison = comparison_of(report)
    assert [q.key for q in comparison.quantities if not q.higher_is_better] == ["fd_toy", "kid_toy"]
    assert comparison.quantities[0].floor == report.floors["fd_toy"]
    assert "40 real images (real)" in html_report("title", "", report)
    assert "| row | fd_toy ↓ |" in model_card(comparison)
    assert higher_is_better("IS")
    assert not higher_is_better("FID")


def test_a_list_says_the_first_seed_of_a_prompt() -> None:
    """The next pictures of it take the next seeds, and another evaluation seed is elsewhere."""
    asked = Asked(["a", "b"], (None, 70))
    assert asked.what(5) == ["a", "b", "a", "b", "a"]
    assert asked.seeds(0, 5) == [0, 70, 2, 71, 4]
    other = asked.seeds(1, 5)
    assert not set(other) & set(asked.seeds(0, 5))
    assert Asked(["a", "b"]).seeds(0, 3) == [0, 1, 2]
