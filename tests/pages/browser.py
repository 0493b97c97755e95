"""A headless Chromium for the tests of pages: what it saw, in which medium, and pictures."""

import base64
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Self

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

DRIVER, BROWSER = shutil.which("chromedriver"), shutil.which("chromium")
MISSING = None if DRIVER and BROWSER else "no chromium and chromedriver on PATH"

_CONTRASTS = """
const channel = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
const ground = (e) => {
  if (e instanceof SVGTextElement && e.previousElementSibling?.tagName === "rect") {
    return numbers(getComputedStyle(e.previousElementSibling).fill);
  }
  for (; e; e = e.parentElement) {
    const colour = numbers(getComputedStyle(e).backgroundColor);
    if (colour.length < 4 || colour[3] > 0) return colour;
  }
};
const found = {};
for (const e of document.querySelectorAll("body *")) {
  if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) || !e.getClientRects().length) continue;
  if (["SCRIPT", "STYLE", "OPTION", "TITLE", "title"].includes(e.tagName)) continue;
  const style = getComputedStyle(e);
  const [a, b] = [light(numbers(e instanceof SVGElement ? style.fill : style.color)), light(ground(e))];
  const key = `${e.tagName}.${e.getAttribute("class")}: ${e.textContent.slice(0, 30)}`;
  found[key] = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}
return found;"""

_OWN_PAGES = ("chrome://", "chrome-untrusted://")


class Browser:
    """One Chromium process. `open` before everything else."""

    def __init__(self) -> None:
        self._profile = tempfile.TemporaryDirectory(prefix="spqfmt-chromium-", ignore_cleanup_errors=True)
        options = ChromeOptions()
        options.binary_location = BROWSER or ""
        for switch in (
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-dev-shm-usage",
            "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
            f"--user-data-dir={self._profile.name}",
        ):  # fmt: skip
            options.add_argument(switch)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        # Selenium would ask a proxy of the environment for the driver on this machine.
        os.environ["NO_PROXY"] = os.environ["no_proxy"] = "localhost,127.0.0.1"
        self.driver = Chrome(options=options, service=Service(DRIVER))
        self.driver.set_script_timeout(20)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.driver.quit()
        self._profile.cleanup()

    def command(self, name: str, **arguments: object) -> Any:
        """One command of the DevTools protocol."""
        return self.driver.execute_cdp_cmd(name, arguments)

    def open(self, path: Path, width: int = 1200, height: int = 900, *, dark: bool = False) -> None:
        """Load a page in a window of this size, in the light or the dark scheme."""
        self.medium("screen", dark=dark)
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.driver.get_log("browser")
        self.driver.get_log("performance")
        self.driver.get(path.as_uri())

    def medium(self, medium: str, *, dark: bool = False) -> None:
        """Show the page for "screen" or "print"; "" is as it comes."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", media=medium, features=[scheme])

    def run(self, script: str, *arguments: object) -> Any:
        """The value of a script's `return`."""
        return self.driver.execute_script(script, *arguments)

    def text(self, selector: str) -> str:
        """What the first match shows."""
        found = self.run("return document.querySelector(arguments[0]).textContent", selector)
        assert isinstance(found, str)
        return found

    def complaints(self) -> list[str]:
        """What the console has said since `open`."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Addresses that were asked for since `open`, or since the last call; not the browser's own pages."""
        messages = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        asked = [
            message["params"] for message in messages if message["method"] == "Network.requestWillBeSent"
        ]
        return [one["request"]["url"] for one in asked if not one["documentURL"].startswith(_OWN_PAGES)]

    def contrasts(self) -> dict[str, float]:
        """The contrast of each text to the ground that it stands on, by element."""
        found = self.run(_CONTRASTS)
        assert isinstance(found, dict)
        return found

    def picture(self, path: Path) -> None:
        """The whole page as a PNG."""
        shown = self.command("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        path.write_bytes(base64.b64decode(shown["data"]))

    def print(self, path: Path) -> None:
        """The page as a PDF, on A4."""
        self.medium("")
        shown = self.command("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)
        path.write_bytes(base64.b64decode(shown["data"]))
