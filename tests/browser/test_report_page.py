"""The report page in a real browser: no error, no request, every control by keyboard, readable anywhere.

Needs Chromium and playwright (conftest.py).
"""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from swiftmask.data.scenes import FACT_KINDS
from swiftmask.evaluate.quantities import Quantity, Spread
from swiftmask.evaluate.report import Gallery, Timeline, html_report, image_uri
from swiftmask.evaluate.report.timeline import DECIDED, Moment
from swiftmask.evaluate.summary import Report, RowSummary

pytestmark = pytest.mark.browser

HOSTILE = "</script><img src=x onerror=alert(1)>"
ROWS = (
    ("vanilla-4", "vanilla", 4, 4, 2.0, 0.70),
    ("vanilla-8", "vanilla", 8, 8, 4.0, 0.85),
    ("vanilla-16", "vanilla", 16, 16, 8.0, 0.95),
    ("shortcut-16:4", "shortcut", 16, 4, 3.0, 0.93),
    ("reuse-16:4", "reuse", 16, 4, 2.5, 0.60),
)


def _row(name: str, series: str, steps: int, full_steps: int, gflop: float, score: float) -> RowSummary:
    return RowSummary(
        name=name,
        series=series,
        steps=steps,
        full_steps=full_steps,
        calls={"backbone": full_steps, "head": steps},
        gflop=gflop,
        ms=10 * gflop,
        peak_memory_bytes=10**8,
        values={"score": Spread(score, 0.01), "fd_scenes": Spread(100 * (1 - score), 1.0)}
        | {f"fact_{kind}": Spread(score, 0.01) for kind in FACT_KINDS},
        equal_cost={},
    )


def _timeline(row: str, full: tuple[int, ...]) -> Timeline:
    moments = [
        Moment(
            full=step in full,
            num_decided=1,
            num_masked=3 - step,
            frame=image_uri(torch.full((3, 8, 8), step / 4)),
            confidence=bytes([DECIDED] * step + [50] * (4 - step)),
        )
        for step in range(4)
    ]
    return Timeline(row=row, grid=(2, 2), moments=tuple(moments))


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    report = Report(
        model=HOSTILE,
        commit="abc",
        date="2026-01-01",
        machine="a machine",
        N=20,
        seeds=2,
        batch_size=10,
        command=f"swiftmask bench '{HOSTILE}'",
        quantities=[
            Quantity(key="score", label="judge score", higher_is_better=True, compared=True),
            Quantity(key="fd_scenes", label="fd_scenes", higher_is_better=False, compared=True),
            *(
                Quantity(key=f"fact_{kind}", label=kind, higher_is_better=True, group="By kind of fact")
                for kind in FACT_KINDS
            ),
        ],
        floors={"fd_scenes": Spread(2.0, 0.1)},
        notes=[],
        rows=[_row(*row) for row in ROWS],
    )
    images = {
        row.name: tuple(
            image_uri(torch.full((3, 8, 8), row.values["score"].mean * shade)) for shade in (0.4, 1.0)
        )
        for row in report.rows
    }
    page = html_report(
        HOSTILE,
        "What was found.",
        report,
        gallery=Gallery(captions=("a red circle, seed 0", f"{HOSTILE}, seed 1"), images=images),
        timelines=[_timeline("vanilla-16", (0, 1, 2, 3)), _timeline("shortcut-16:4", (0, 2))],
    )
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


class Opened:
    """The page, with every complaint and every request it makes."""

    def __init__(self, browser: Any, path: Path, width: int = 1400, scheme: str = "light") -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page.set_default_timeout(120_000)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()

    def outside(self) -> list[str]:
        """Requests beyond the file itself and what it carries."""
        return [url for url in self.requests[1:] if not url.startswith("data:")]


@pytest.fixture
def opened(chromium: Any, page_file: Path) -> Iterator[Opened]:
    page = Opened(chromium, page_file)
    yield page
    page.page.close()
    assert page.complaints == []
    assert page.outside() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [380, 1400])
def test_readable_at_any_width_by_day_and_night(
    chromium: Any, page_file: Path, width: int, scheme: str
) -> None:
    opened = Opened(chromium, page_file, width, scheme)
    for section in ("frontier", "pictures", "timeline", "numbers"):
        assert opened.page.locator(f"#{section}").is_visible()
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    small = "[...document.querySelectorAll('text')].map(t => parseFloat(getComputedStyle(t).fontSize))"
    assert min(opened.page.evaluate(small)) >= 12
    assert opened.page.evaluate(_CONTRAST) >= 4.5
    opened.page.close()
    assert opened.complaints == []
    assert opened.outside() == []


_CONTRAST = """() => {
  const light = (color) => {
    const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = color.match(/[\\d.]+/g).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const ratio = (one) => (Math.max(one, paper) + 0.05) / (Math.min(one, paper) + 0.05);
  const styles = (names) => [...document.querySelectorAll(names)].map((e) => getComputedStyle(e));
  const texts = styles("p, figcaption, td, label").map((style) => style.color);
  const colors = [...texts, ...styles(".point-label").map((style) => style.fill)];
  return Math.min(...colors.map((color) => ratio(light(color))));
}"""
"""The least contrast of a text with the paper (WCAG 2.2, 1.4.3)."""


def test_points_tell_their_row_to_mouse_and_keyboard(opened: Opened) -> None:
    page = opened.page
    page.locator(".point[data-row='reuse-16:4'] .target").hover()
    assert "reuse-16:4" in opened.text("#plot-tip")
    assert "judge score 0.6 ± 0.01" in opened.text("#plot-tip")
    page.locator(".point[tabindex='0']").focus()
    names = []
    for key in ("Home", "ArrowRight", "ArrowRight", "End"):
        page.keyboard.press(key)
        names.append(page.evaluate("document.activeElement.dataset.row"))
        assert names[-1] in opened.text("#plot-tip")
    assert names == ["vanilla-4", "reuse-16:4", "shortcut-16:4", "vanilla-16"]
    assert page.locator(".point[tabindex='0']").count() == 1
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    assert page.locator("#right-row").input_value() == "vanilla-4"


def test_budget_axes_and_methods(opened: Opened) -> None:
    page = opened.page
    assert page.locator("#plot-budget").input_value() == "4.04"
    assert opened.text("#plot-verdict").startswith("Best within the budget: shortcut-16:4")
    before = page.locator(".budget").get_attribute("x1")
    page.locator("#plot-budget").fill("2.2")
    assert page.locator(".budget").get_attribute("x1") != before
    assert opened.text("#plot-verdict").startswith("Best within the budget: vanilla-4")
    page.locator("#plot-budget").fill("1")
    assert opened.text("#plot-verdict") == "No row is that cheap."
    page.locator("#plot-cost").select_option("ms")
    assert page.locator("#plot-budget").input_value() == "40.4"
    page.locator("#plot-quantity").select_option("fd_scenes")
    assert "fd_scenes 7" in opened.text("#plot-verdict")
    page.get_by_label("shortcut", exact=True).focus()
    page.keyboard.press("Space")
    assert page.locator(".point").count() == len(ROWS) - 1
    assert "vanilla-8" in opened.text("#plot-verdict")


def test_many_methods_have_each_a_mark_of_its_own(opened: Opened) -> None:
    marks = opened.page.evaluate(
        """() => {
          allSeries.push(...Array.from({ length: 17 }, (_, index) => `method-${index}`));
          const marks = allSeries.map((series) => seriesClass(series) + mark(series, 5));
          allSeries.length = 3;
          return marks;
        }"""
    )
    assert len(set(marks)) == len(marks) == 20


def test_the_front_leaves_out_what_is_beaten(opened: Opened) -> None:
    corners = opened.page.locator("path.front").get_attribute("d").count("V")
    assert corners == 2  # from vanilla-4 up to the shortcut, and from there to vanilla-16


def test_slider_and_choice_of_images(opened: Opened) -> None:
    page = opened.page
    slider = page.locator("#stage-share")
    slider.focus()
    page.keyboard.press("End")
    assert " 0%" in page.locator("#left-image").evaluate("e => e.style.clipPath")
    page.keyboard.press("Home")
    assert "100%" in page.locator("#left-image").evaluate("e => e.style.clipPath")
    assert slider.get_attribute("aria-valuetext") == "0 % vanilla-16, 100 % shortcut-16:4", "rows by name"
    quarter = page.locator("#stage").evaluate("e => e.clientWidth / 4")
    page.locator("#stage").click(position={"x": quarter, "y": 20})
    assert slider.input_value() == "25"
    first = page.locator("#right-image").get_attribute("src")
    page.get_by_role("radio").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#right-image").get_attribute("src") != first
    assert HOSTILE in opened.text("#stage-caption")
    page.locator("#row-choices button").last.focus()
    page.keyboard.press("Enter")
    assert page.locator("#right-row").input_value() == "reuse-16:4"
    assert page.locator("#row-choices [aria-pressed=true]").count() == 1


def test_timeline(opened: Opened) -> None:
    page = opened.page
    assert page.locator("#timeline-row").input_value() == "shortcut-16:4"
    assert page.locator("#timeline-steps .full").count() == 2
    page.locator("#timeline-step").focus()
    page.keyboard.press("Home")
    assert opened.text("#timeline-text") == "Step 1 of 4, full: 1 tokens decided, 3 left."
    label = page.locator("#timeline-confidence").get_attribute("aria-label")
    assert label == "Confidence map of step 1: 4 tokens masked, 50 % on average"
    frame = page.locator("#timeline-frame").get_attribute("src")
    page.keyboard.press("ArrowRight")
    assert "Step 2 of 4, accelerated" in opened.text("#timeline-text")
    assert page.locator("#timeline-frame").get_attribute("src") != frame
    page.locator("#timeline-row").select_option("vanilla-16")
    assert page.locator("#timeline-steps .full").count() == 4
    page.locator("#timeline-play").focus()
    page.keyboard.press("Enter")
    expect = importlib.import_module("playwright.sync_api").expect
    expect(page.locator("#timeline-step")).to_have_value("4")
    expect(page.locator("#timeline-play")).to_have_text("Play")


def test_copy_buttons(chromium: Any, page_file: Path) -> None:
    opened = Opened(chromium, page_file)
    page = opened.page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy the command of reuse-16:4").focus()
    page.keyboard.press("Enter")
    expect = importlib.import_module("playwright.sync_api").expect
    expect(page.locator("#status")).to_have_text("Copied.")
    assert page.evaluate("navigator.clipboard.readText()").endswith("--only reuse-16:4")
    page.get_by_role("button", name="Copy as Markdown").click()
    for _ in range(50):  # the page's own policy forbids playwright's polling inside of it
        if page.evaluate("navigator.clipboard.readText()").startswith("## Quality"):
            break
        page.wait_for_timeout(100)
    assert page.evaluate("navigator.clipboard.readText()").startswith("## Quality")
    page.close()


def test_every_control_has_a_name_and_is_reached_by_tab(opened: Opened) -> None:
    page = opened.page
    wanted = page.locator("select, button, input:not([type=radio]), [tabindex='0']").count()
    reached = set()
    for _ in range(wanted + 5):
        page.keyboard.press("Tab")
        seen = page.evaluate(_FOCUSED)
        if seen is None:
            break
        number, named, outlined = seen
        assert named, seen
        assert outlined, seen
        reached.add(number)
    assert len(reached) >= wanted


_FOCUSED = """() => {
  const e = document.activeElement;
  if (e === document.body) return null;
  const labels = [...(e.labels ?? [])].map((one) => one.textContent + (one.querySelector("img")?.alt ?? ""));
  const by = document.getElementById(e.getAttribute("aria-labelledby"));
  const own = e.tagName === "BUTTON" ? e.textContent : "";
  const name = [e.getAttribute("aria-label"), ...labels, by?.textContent, own];
  const shown = [e, e.parentElement, ...e.children].some((one) => {
    const style = getComputedStyle(one);
    return style.outlineStyle !== "none" || (one.matches(".target") && parseFloat(style.strokeWidth) >= 3);
  });
  return [[...document.querySelectorAll("*")].indexOf(e), name.some((text) => text?.trim()), shown];
}"""
"""The focused element: its number, whether it has a name, and whether a person sees that it is focused."""
