"""The report: what it concludes, what it escapes, what it refuses; its scripts run in tests/browser."""

import base64
import json
import re
from dataclasses import replace
from io import BytesIO

import pytest
import torch
from PIL import Image
from torch import Tensor

from swiftmask.core.decode import FullFeatures, decode, prepare_condition
from swiftmask.core.protocol import MaskedGenerator, SamplingOptions
from swiftmask.core.rng import SeededNoise
from swiftmask.evaluate.quantities import Quantity, Spread
from swiftmask.evaluate.report import (
    Gallery,
    Timeline,
    TimelineRecorder,
    findings,
    html_report,
    image_uri,
    model_card,
)
from swiftmask.evaluate.report.timeline import DECIDED
from swiftmask.evaluate.summary import Report, RowSummary
from swiftmask.models.mar import MAR
from swiftmask.models.maskgit import MaskGIT

HOSTILE = "</script><b>&amp;"
SCORE = Quantity(key="score", label="judge score", higher_is_better=True, compared=True)
DISTANCE = Quantity(key="fd_toy", label="fd_toy", higher_is_better=False, compared=True)
SHAPE = Quantity(key="fact_shape", label="shape", higher_is_better=True, group="By kind of fact")


def _summary(name: str, gflop: float, score: float, spread: float = 0.0) -> RowSummary:
    series, _, budget = name.partition("-")
    steps, _, full_steps = budget.partition(":")
    return RowSummary(
        name=name,
        series=series,
        steps=int(steps),
        full_steps=int(full_steps or steps),
        calls={"backbone": int(full_steps or steps), "head": int(steps)},
        gflop=gflop,
        ms=gflop,
        peak_memory_bytes=10**6,
        values={"score": Spread(score, spread)},
        equal_cost={},
    )


def _report(*rows: RowSummary) -> Report:
    return Report(
        model=HOSTILE,
        commit="abc",
        date="2026-01-01",
        machine="a machine",
        command=f"swiftmask bench {HOSTILE}",
        N=20,
        seeds=2,
        batch_size=10,
        quantities=[SCORE],
        floors={},
        notes=["A note."],
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
    text = findings(_report(FULL, FEWER, fast, dear))
    assert verdict in text
    assert "shortcut-16:4" in text
    assert "2.7 times fewer" in text


def test_one_evaluation_seed_has_no_winner() -> None:
    fast = _summary("shortcut-16:4", 3.0, 0.9)
    text = findings(replace(_report(FULL, FEWER, fast), seeds=1))
    assert "no difference that one evaluation seed can show from the best of fewer steps alone" in text


@pytest.mark.parametrize("name", ["unguided-16", "temperature_0.7-8", "unguided+power_2-8", "ddim-8"])
def test_other_sampling_is_no_acceleration(name: str) -> None:
    """Rows of the full model that sample otherwise are named as what they are, and win as such."""
    other = replace(_summary(name, 3.0, 0.93), series=name.rpartition("-")[0].replace("_", "-"))
    text = findings(_report(FULL, FEWER, other))
    assert "No accelerated row costs half of that or less. With other sampling alone" in text
    fast = _summary("shortcut-16:4", 3.0, 0.9)
    report = _report(FULL, FEWER, fast, other)
    text = findings(report)
    assert "the best accelerated row is shortcut-16:4" in text
    assert f"With other sampling alone, {name} has 0.93 at 3 GFLOP; it beats shortcut-16:4." in text
    picked = report.picked()
    assert picked is not None
    assert picked.name == "shortcut-16:4"
    both = replace(_summary("shortcut-16:4", 3.0, 0.9), series="unguided+shortcut")
    assert both.accelerated


def test_less_work_in_more_time_is_said() -> None:
    fast = replace(_summary("shortcut-16:4", 3.0, 0.9), ms=9.0)
    text = findings(_report(FULL, FEWER, fast))
    assert "2.7 times fewer), but no faster on this machine (9 ms against 8 ms)" in text


def test_findings_say_what_fewer_steps_give_at_equal_cost() -> None:
    fast = replace(_summary("shortcut-16:4", 3.0, 0.9), equal_cost={"score": 0.7654})
    text = findings(_report(FULL, FEWER, fast))
    assert text.endswith(" Fewer steps alone at the cost of shortcut-16:4 would have 0.765 (interpolated).")


def test_findings_without_a_full_model_or_an_affordable_row() -> None:
    fast = _summary("shortcut-16:12", 7.0, 0.95)
    assert "No accelerated row" in findings(_report(FULL, FEWER, fast))
    assert "no row of fewer steps alone" in findings(_report(FULL, _summary("shortcut-16:4", 3.0, 0.9)))
    alone = _report(fast)
    assert findings(alone).startswith("1 rows of")
    assert alone.picked() is not None


def test_the_row_shown_first_is_the_best_at_half_the_cost() -> None:
    rows = (_summary("reuse-16:4", 3.0, 0.5), _summary("shortcut-16:4", 3.0, 0.9))
    picked = _report(FULL, *rows, _summary("shortcut-16:12", 7.0, 0.95)).picked()
    assert picked is not None
    assert picked.name == "shortcut-16:4"


def test_nothing_of_the_user_becomes_markup() -> None:
    page = html_report(HOSTILE, HOSTILE, _report(FULL), gallery=Gallery(captions=(), images={}))
    assert HOSTILE not in page
    assert "<b>" not in page
    block = re.search(r'<script type="application/json" id="report-data">(.*?)</script>', page, re.DOTALL)
    assert block is not None
    data = json.loads(block[1])
    assert data["rows"][0]["name"] == FULL.name
    assert HOSTILE in data["markdown"]


def test_the_page_asks_the_network_for_nothing() -> None:
    page = html_report("A title", "A summary.", _report(FULL))
    assert "default-src 'none'" in page
    assert not re.search(r"https?:|@import|url\(", page)
    assert page.count("<script") == page.count("</script>") == 2


def test_the_model_card_has_table_caption_and_commands() -> None:
    card = model_card(_report(FULL, FEWER))
    assert card.startswith("## Quality and cost of")
    assert "| vanilla-16 | 0.950" in card
    assert "N = 20" in card
    assert f"All rows: `swiftmask bench {HOSTILE}`; one row alone: add `--only ROW`." in card


def test_quantities_of_a_group_have_a_table_of_their_own() -> None:
    known = replace(FULL, values=FULL.values | {"fact_shape": Spread(0.5, 0.02)})
    report = replace(_report(known), quantities=[SCORE, SHAPE])
    for text in (html_report("title", "", report), model_card(report)):
        assert "0.500 ± 0.020" in text
        assert "By kind of fact" in text
    assert "By kind of fact" not in html_report("title", "", _report(FULL))


def _distances(*means: float, floor: float, precision: float = 0.5) -> Report:
    names = ("vanilla-16", "vanilla-4", "shortcut-16:4")
    rows = [
        replace(
            _summary(name, gflop, 0.0),
            values={"fd_toy": Spread(mean, 1.0), "precision_toy": Spread(precision, 0.0)},
        )
        for name, gflop, mean in zip(names, (8.0, 2.0, 3.0), means, strict=True)
    ]
    precise = Quantity(key="precision_toy", label="precision_toy", higher_is_better=True)
    report = replace(_report(*rows), quantities=[DISTANCE, precise])
    return replace(report, floors={"fd_toy": Spread(floor, 0.0)})


def test_far_from_real_images_no_row_is_called_better() -> None:
    """A broken model has rows of 1,037 and 1,072: no win, whatever the spread."""
    near = findings(_distances(60.0, 90.0, 70.0, floor=40.0))
    assert "it beats the best of fewer steps alone" in near
    for report in (
        _distances(1100.0, 1072.0, 1037.0, floor=40.0),
        _distances(1100.0, 1072.0, 1037.0, floor=500.0, precision=0.0),
    ):
        text = findings(report)
        assert "differences between rows say nothing about quality" in text
        assert "beats" not in text
        assert "differences between rows say nothing" in model_card(report)
        page = html_report("title", text, report)
        assert json.loads(page.partition('id="report-data">')[2].partition("</script>")[0])["meaningless"]
    assert "26 times that of real images (1037 against 40)" in findings(
        _distances(1100.0, 1072.0, 1037.0, floor=40.0)
    )


def test_a_gallery_has_every_image_of_every_row() -> None:
    with pytest.raises(ValueError, match=r"one image per caption \(2\): fast has 1"):
        Gallery(captions=("a", "b"), images={"full": ("x", "y"), "fast": ("x",)})


def test_small_images_are_kept_exactly_and_large_ones_small() -> None:
    image_3HW = torch.rand(3, 12, 20)
    kind, kept = _decoded(image_uri(image_3HW))
    assert kind == "png"
    assert torch.equal(kept, (image_3HW * 255).round().byte())
    kind, large = _decoded(image_uri(torch.rand(3, 256, 256)))
    assert (kind, large.shape) == ("jpeg", (3, 256, 256))
    assert _decoded(image_uri(image_3HW, at_most=10))[1].shape == (3, 6, 10)


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
