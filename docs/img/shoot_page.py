"""Draw the pictures of the server's page: `python docs/img/shoot_page.py`, with `omnikit serve` running."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

HERE = Path(__file__).parent
SPOKEN = HERE.parents[1] / "egs/mini/questions/opposite.wav"
TYPED = "and of up"
PICTURES = {
    "page_wide": {"viewport": {"width": 1180, "height": 860}},
    "page_dark": {"viewport": {"width": 1180, "height": 860}, "color_scheme": "dark"},
    "page_narrow": {"viewport": {"width": 360, "height": 780}},
}
MICROPHONE = [
    "--no-sandbox",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
    f"--use-file-for-fake-audio-capture={SPOKEN}%noloop",
]


def shoot(browser: Browser, url: str, name: str, options: dict) -> None:
    """Ask a spoken and a written question, and draw the page while the second answer is heard."""
    page = browser.new_page(**options)
    page.goto(url)
    page.wait_for_selector('#connection[data-state="open"]')
    page.check("#transcribes")
    page.focus("#talk")
    page.keyboard.down("Space")
    time.sleep(2)  # the length of the recording
    page.keyboard.up("Space")
    page.wait_for_selector('[data-status="done"]')
    page.fill("#text", TYPED)
    page.press("#text", "Enter")
    page.wait_for_selector("#turns li:first-child .latency:not([hidden])")
    time.sleep(1)
    page.screenshot(path=HERE / f"{name}.png")
    page.close()


def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=MICROPHONE)
        for name, options in PICTURES.items():
            shoot(browser, url, name, options)


if __name__ == "__main__":
    main()
