"""Chromium, driven by playwright.

Needs both (`make browser` and Debian's chromium); tests are skipped where either is missing, unless
SWIFTMASK_REQUIRE_BROWSER is set, as in CI.
"""

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sync_playwright = None
    if program is None or sync_playwright is None:
        missing = "no Chromium on the PATH" if program is None else "playwright is not installed"
        if os.environ.get("SWIFTMASK_REQUIRE_BROWSER"):
            pytest.fail(f"{missing}, and SWIFTMASK_REQUIRE_BROWSER is set")
        pytest.skip(f"{missing}: pages are not tested in a browser")
    with sync_playwright() as playwright:
        # Containers run as root and without user namespaces, where the sandbox cannot start.
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=program, args=arguments, timeout=300_000)
        yield browser
        browser.close()
