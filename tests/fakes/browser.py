"""A headless Chromium for tests of the page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
WAIT_S = 60.0
POLL_S = 0.05


class Browser:
    """What the tests do with it. Every wait is for something to become true, never for time to pass."""

    def __init__(self, driver: object) -> None:
        from selenium.webdriver import Chrome

        assert isinstance(driver, Chrome)
        self.driver = driver

    def open(self, url: str, *, width: int = 1440, height: int = 900, dark: bool = False) -> None:
        """Load a page in a window of this size; what an earlier page said on the console is forgotten."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        # A smooth scroll would still be under way when a click looks for its target.
        motion = {"name": "prefers-reduced-motion", "value": "reduce"}
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme, motion]})
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.get("about:blank")
        self.complaints()
        self.driver.get(url)
        self.until("document.querySelector('#live').dataset.state === 'live'")

    def js(self, expression: str) -> object:
        return self.driver.execute_script(f"return ({expression})")

    def until(self, expression: str) -> None:
        """Wait until the expression is true in the page."""
        from selenium.webdriver.support.ui import WebDriverWait

        message = f"never true: {expression}"
        WebDriverWait(self.driver, WAIT_S, POLL_S).until(lambda _: self.js(expression), message)

    def text(self, selector: str) -> str:
        return str(self.js(f"document.querySelector({selector!r}).innerText"))

    def click(self, selector: str) -> None:
        """A real click: fails if something covers the element."""
        self.driver.find_element("css selector", selector).click()

    def type(self, selector: str, text: str) -> None:
        """Replace a field's content."""
        field = self.driver.find_element("css selector", selector)
        field.clear()
        field.send_keys(text)

    def press(self, *keys: str) -> None:
        """Press keys together, wherever the focus is."""
        from selenium.webdriver import ActionChains

        chain = ActionChains(self.driver)
        for key in keys:
            chain.key_down(key)
        for key in reversed(keys):
            chain.key_up(key)
        chain.perform()

    def complaints(self) -> list[str]:
        """What the console has said since the last call, warnings and errors."""
        return [str(entry["message"]) for entry in self.driver.get_log("browser")]  # type: ignore[no-untyped-call]


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A Chromium with a profile of its own; skips the test where it cannot be had."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("No Chromium: `apt-get install chromium chromium-driver`.")
    webdriver = pytest.importorskip("selenium.webdriver", reason="No selenium: `pip install selenium`.")
    options = webdriver.ChromeOptions()
    for argument in (*ARGUMENTS, f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield Browser(browser)
    finally:
        browser.quit()
