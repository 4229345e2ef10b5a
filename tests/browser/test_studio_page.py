"""The page of `swiftmask studio` in a real browser: generate, compare, inpaint, knobs, errors, two users.

Needs gradio beside Chromium (`make browser`); skipped where it is missing, unless SWIFTMASK_REQUIRE_BROWSER
is set, as in CI.
"""

import io
import json
import os
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import swiftmask
from swiftmask.serve.app import image_app
from swiftmask.serve.batches import BatchLimits
from swiftmask.serve.catalogue import Catalogue
from swiftmask.serve.limits import Limits
from swiftmask.serve.listening import ListeningServer, bound_socket
from swiftmask.serve.service import ServeSettings
from swiftmask.studio.code import Source
from tests.serving import listening

pytestmark = pytest.mark.browser

OPEN = "studio"


@pytest.fixture(scope="module")
def url(
    tiny_catalogue: Catalogue, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    if find_spec("gradio") is None:
        if os.environ.get("SWIFTMASK_REQUIRE_BROWSER"):
            pytest.fail("gradio is not installed, and SWIFTMASK_REQUIRE_BROWSER is set")
        pytest.skip("gradio is not installed: the studio's page is not tested")
    from swiftmask.studio.page import studio_page

    report = tmp_path_factory.mktemp("report") / "report.html"
    report.write_text("<h1>What acceleration costs</h1>")
    settings = ServeSettings(batches=BatchLimits(max_batch=4, max_wait_s=0.0))
    app = image_app(tiny_catalogue, settings, pages=[studio_page(Source(model=str(tiny_folder)), report)])
    with ListeningServer(app, bound_socket(), limits=Limits(), grace_s=5) as server:
        with listening(server) as url:
            yield url


class Studio:
    """The page, with every complaint and every request beyond the server."""

    def __init__(self, browser: Any, url: str, *, width: int = 1400, scheme: str = "light") -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page.set_default_timeout(120_000)
        self.complaints: list[str] = []
        self.outside: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._said)
        self.page.on("request", lambda request: self._asked(request.url, url))
        self.page.goto(f"{url}/{OPEN}")
        self.page.locator(".sm-costs").wait_for()

    def _said(self, message: Any) -> None:
        if message.type == "error":
            self.complaints.append(message.text)

    def _asked(self, asked: str, url: str) -> None:
        if not asked.startswith((url, "data:", "blob:")):
            self.outside.append(asked)

    def generate(self) -> None:
        self.page.get_by_role("button", name="Generate", exact=True).click()

    def finished(self) -> None:
        self.page.locator(".sm-told", has_text="finished").wait_for()

    def bytes_of(self, link: Any) -> bytes:
        return self.page.request.get(f"{self.page.url.split('?')[0]}{link.get_attribute('href')}").body()


@pytest.fixture
def opened(chromium: Any, url: str) -> Iterator[Studio]:
    studio = Studio(chromium, url)
    yield studio
    studio.page.close()
    assert studio.complaints == []
    assert studio.outside == [], "the page asks nobody but its own server"


def test_generate_compare_download_and_copy(opened: Studio, tiny_pipeline: swiftmask.Pipeline) -> None:
    page = opened.page
    opened.generate()
    opened.finished()
    assert page.locator(".sm-side .sm-canvas").count() == 2
    assert page.locator(".sm-side .done.full").count() > page.locator(".sm-side .done.fast").count() > 0
    slider = page.locator(".sm-range input")
    slider.focus()
    page.keyboard.press("End")
    assert "inset(0px 0%" in page.locator(".sm-stage .over").evaluate("e => e.style.clipPath")
    stage = page.locator(".sm-stage")
    stage.click(position={"x": stage.evaluate("e => e.clientWidth / 4"), "y": 20})
    assert slider.input_value() == "25"
    assert slider.get_attribute("aria-valuetext") == "25 % full model, 75 % accelerated"

    page.get_by_role("tab", name="Gallery").click()
    links = page.locator(".sm-picture")
    links.first.wait_for()
    with Image.open(io.BytesIO(opened.bytes_of(links.first))) as full:
        assert np.array_equal(np.array(full), np.array(tiny_pipeline.generate([0], seeds=[0]).images[0]))
    with Image.open(io.BytesIO(opened.bytes_of(links.last))) as fast:
        assert json.loads(fast.info["swiftmask"])["accelerator"] == "shortcut"
    assert links.last.get_attribute("download") == "0-0.png"
    assert page.request.get(f"{page.url}files/guessed.png").status == 404
    preset = json.loads(opened.bytes_of(page.locator(".sm-links a")))
    assert preset["kind"] == "swiftmask preset" and preset["measured"] is None

    page.get_by_role("tab", name="Code").click()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy").first.click()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("swiftmask generate ") and "--full-steps" in copied
    page.get_by_role("tab", name="Report").click()
    assert page.frame_locator("iframe").locator("h1").inner_text() == "What acceleration costs"


def test_knobs_errors_and_inpainting_by_keyboard(opened: Studio) -> None:
    page = opened.page
    expect = import_module("playwright.sync_api").expect
    expect.set_options(timeout=60_000)
    before = page.locator(".sm-costs tbody tr").last.inner_text()
    page.get_by_role("slider", name="Full steps").focus()
    page.keyboard.press("Home")
    expect(page.locator(".sm-costs tbody tr").last).to_contain_text("1 full")
    assert page.locator(".sm-costs tbody tr").last.inner_text() != before

    page.get_by_label("Guidance").fill("0.5")
    expect(page.locator(".sm-ask .sm-error")).to_contain_text("guidance must be a number between 1 and 100")
    opened.generate()
    expect(page.locator(".sm-result .sm-error")).to_contain_text("guidance must be a number")
    page.get_by_label("Guidance").fill("2")
    page.locator(".sm-costs").wait_for()

    page.get_by_text("Start from an image").click()
    page.get_by_role("button", name="Take the last").click()
    expect(page.locator(".sm-result .sm-error")).to_contain_text("nothing was generated yet")
    image = Image.fromarray(np.full((8, 8, 3), 200, np.uint8))
    file = io.BytesIO()
    image.save(file, "PNG")
    upload = {"name": "grey.png", "mimeType": "image/png", "buffer": file.getvalue()}
    page.locator("input[type=file]").first.set_input_files([upload])
    canvas = page.locator(".sm-brush canvas")
    canvas.focus()
    for key in ("ArrowLeft", "ArrowUp", "Space"):
        page.keyboard.press(key)
    expect(page.locator(".sm-ask .sm-error")).to_contain_text("take fewer steps")
    for name in ("for Steps, accelerated", "for Steps, full model"):
        page.get_by_role("slider", name=name).focus()
        page.keyboard.press("Home")
    expect(page.locator(".sm-costs tbody tr").last).to_contain_text("1 step, all full")
    opened.generate()
    opened.finished()
    page.get_by_role("tab", name="Gallery").click()
    page.locator(".sm-picture").first.wait_for()
    for link in page.locator(".sm-picture").all():
        with Image.open(io.BytesIO(opened.bytes_of(link))) as drawn:
            kept = (np.array(drawn) == 200).all(axis=-1)
            assert 0.5 < kept.mean() < 1, "what was not painted is as it was sent"
            assert json.loads(drawn.info["swiftmask"])["mask"].startswith("mask.png ")


def test_two_users_at_once(chromium: Any, url: str) -> None:
    """Each sees images of its own seed; sessions share the model and nothing else."""
    users = [Studio(chromium, url) for _ in range(2)]
    for seed, user in enumerate(users, 5):
        user.page.get_by_label("First seed").fill(str(seed))
        user.page.keyboard.press("Tab")
    for user in users:
        user.generate()
    for seed, user in enumerate(users, 5):
        user.finished()
        user.page.get_by_role("tab", name="Gallery").click()
        user.page.locator(".sm-gallery > li").first.wait_for()
        assert user.page.locator(".sm-gallery > li").count() == 1
        assert f"seed {seed}" in user.page.locator(".sm-gallery img").first.get_attribute("alt")
        user.page.close()
        assert user.complaints == [] and user.outside == []


@pytest.mark.parametrize(("width", "scheme"), [(380, "dark"), (380, "light"), (1400, "dark")])
def test_readable_at_any_width_by_day_and_night(chromium: Any, url: str, width: int, scheme: str) -> None:
    studio = Studio(chromium, url, width=width, scheme=scheme)
    assert studio.page.evaluate("document.documentElement.scrollWidth") <= width
    assert studio.page.evaluate(CONTRAST) >= 4.5
    dark = studio.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (dark == "rgb(21, 23, 28)") == (scheme == "dark")
    studio.page.close()
    assert studio.complaints == []


CONTRAST = """() => {
  const light = (color) => {
    const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = color.match(/[\\d.]+/g).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const color = getComputedStyle(e).backgroundColor;
      if (!/^rgba\\(.*, 0\\)$/.test(color)) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const texts = [...document.querySelectorAll("h1, p, td, th, label span, button, small")];
  return Math.min(...texts.filter((e) => e.innerText?.trim() && e.offsetWidth > 1).map((e) => {
    const [ink, paper] = [getComputedStyle(e).color, behind(e)].map(light);
    return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
  }));
}"""
"""The least contrast of a text with what is behind it (WCAG 2.2, 1.4.3)."""


def test_every_control_is_reached_by_tab_and_named(opened: Studio) -> None:
    page = opened.page
    seen: list[str] = []
    for _ in range(60):
        page.keyboard.press("Tab")
        focused = page.evaluate(_FOCUSED)
        if focused is None:
            break
        name, outlined = focused
        assert name, "a control without a name"
        assert outlined, f"nobody sees that {name} is focused"
        seen.append(name)
    for wanted in (
        "Classes",
        "First seed",
        "Generate",
        "Stop",
        "Accelerator",
        "Full steps",
        "Guidance",
        "Start",
    ):
        assert any(wanted in name for name in seen), (wanted, seen)


_FOCUSED = """() => {
  const e = document.activeElement;
  if (e === document.body) return null;
  const labels = [...(e.labels ?? [])].map((one) => one.textContent);
  const name = [e.getAttribute("aria-label"), ...labels, e.textContent, e.title, e.placeholder];
  const style = getComputedStyle(e);
  const shown = style.outlineStyle !== "none" || style.boxShadow !== "none";
  return [name.filter((text) => text?.trim()).join(" "), shown];
}"""
"""The focused element: its name, and whether a person sees that it is focused."""
