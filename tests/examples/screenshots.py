"""Make the pictures of examples/flask_app in docs/images: the graph of all its processes, and a trace.

python -m tests.examples.screenshots
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from tests.admin.test_page import CHROMIUM, WIDE
from tests.examples.running import finish, start

FOLDER = Path(__file__).parent.parent.parent / "docs" / "images"
WARM_UP = 20.0


def take(page: Any, url: str) -> None:
    page.goto(url)
    page.wait_for_selector("tbody tr")
    page.click("nav a[href='#/graph']")
    page.click("[data-key=everywhere]")
    page.wait_for_selector("svg.graph .edge", state="attached")
    page.wait_for_selector("text=spiffe://shop.test/ratings")
    page.screenshot(path=FOLDER / "flask-graph.png")
    page.click("nav a[href='#/traces']")
    page.wait_for_selector("table:has(caption:text-is('Recent traces'))")
    page.locator("tr", has_text="failed inside").locator("a").first.click()
    page.wait_for_selector(".waterfall")
    page.screenshot(path=FOLDER / "flask-trace.png")


def main() -> None:
    if CHROMIUM is None:
        sys.exit("there is no Chromium on this machine: install Debian's package chromium")
    with start("-m", "examples.flask_app", "--visitors", "10") as process:
        assert process.stdout is not None
        url = next(line.split()[-1] for line in process.stdout if line.startswith("the page "))
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
            time.sleep(WARM_UP)
            take(browser.new_page(viewport=WIDE), url)
            browser.close()
        process.send_signal(signal.SIGINT)
        finish(process)


if __name__ == "__main__":
    main()
