"""
A real browser, headless, and scripts that tell how it shows a page.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
import urllib.request
from pathlib import Path
from typing import Any

from .scratch import Cleans
from .server import server_environment
from .waiting import PATIENCE_S, wait_until

CHROMIUM, CHROMEDRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
SKIP_WITHOUT_CHROMIUM = (
    None
    if os.path.exists(CHROMIUM) and os.path.exists(CHROMEDRIVER)
    else "chromium is not installed (Debian: apt-get install chromium chromium-driver)"
)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
#: What reaches beyond the right edge of the window; a table's head is cut off to nothing on a phone.
TOO_WIDE = """
const width = document.documentElement.clientWidth;
const wide = Array.from(document.querySelectorAll("body *")).filter(
    one => !one.closest("thead") && one.getBoundingClientRect().right > width + 0.5
);
return [innerWidth, document.documentElement.scrollWidth, wide.map(one => one.outerHTML.slice(0, 200))];
"""
#: Texts of each kind, with their colour and that of what is behind them, each as three numbers.
COLOURS = """
const parts = text => text.match(/[0-9.]+/g).map(Number);
const behind = one => {
    for (; one; one = one.parentElement) {
        const colour = parts(getComputedStyle(one).backgroundColor);
        if (colour.length === 3 || colour[3] > 0) return colour.slice(0, 3);
    }
    return null;
};
return Array.from(document.querySelectorAll("h1, h2, p, a, small, li, th, td, time, footer p"))
    .filter(one => one.getBoundingClientRect().width > 2)
    .map(one => [one.outerHTML.slice(0, 120), parts(getComputedStyle(one).color).slice(0, 3), behind(one)]);
"""


class Browser:
    """A Chromium without a window, driven by chromedriver over its HTTP protocol; ended after the test."""

    def __init__(self, test: Cleans) -> None:
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        profile = tempfile.mkdtemp(prefix="restic-test-chromium-")
        test.addCleanup(shutil.rmtree, profile, ignore_errors=True)
        environment = {**server_environment(), "HOME": profile}
        self._driver = subprocess.Popen(
            [CHROMEDRIVER, "--port=0"],
            cwd=profile,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        test.addCleanup(self._end)
        self._base = ""
        self._lines: list[str] = []
        self._drain = threading.Thread(target=self._read, daemon=True)
        self._drain.start()
        port = wait_until(self._port, what=self._lines)
        self._base = f"http://127.0.0.1:{port}"
        options = {"binary": CHROMIUM, "args": [*FLAGS.split(), f"--user-data-dir={profile}/profile"]}
        wanted = {
            "browserName": "chrome",
            "goog:loggingPrefs": {"browser": "ALL"},
            "goog:chromeOptions": options,
            "unhandledPromptBehavior": "ignore",
        }
        session = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._base += f"/session/{session['sessionId']}"

    def _read(self) -> None:
        assert self._driver.stdout is not None
        self._lines.extend(self._driver.stdout)

    def _port(self) -> str | None:
        match = re.search(r"started successfully on port (\d+)", "".join(self._lines))
        return match[1] if match else None

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        content = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(self._base + path, content, {"Content-Type": "application/json"}, method=method)
        with self._opener.open(asked, timeout=2 * PATIENCE_S) as answer:
            return json.loads(answer.read())["value"]

    def _end(self) -> None:
        if "/session/" in self._base:
            self._call("DELETE", "")
        self._driver.terminate()
        self._driver.wait(PATIENCE_S)
        self._drain.join(PATIENCE_S)
        assert self._driver.stdout is not None
        self._driver.stdout.close()

    def open(self, url: str) -> None:
        """Load a page, and what belongs to it."""
        self._call("POST", "/url", {"url": url})

    def run(self, script: str) -> Any:
        """What a script of the test's says in the page; no policy of the page's hinders it."""
        return self._call("POST", "/execute/sync", {"script": script, "args": []})

    def develop(self, command: str, **parameters: Any) -> Any:
        """A command of the DevTools protocol."""
        return self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def resize(self, width: int) -> None:
        """A window so wide, also where windows cannot be that narrow."""
        self.develop(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )

    def scheme(self, name: str) -> None:
        """The reader wants C{light} or C{dark}."""
        self.develop("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def console(self) -> list[str]:
        """What was logged since the last call: errors of scripts, violations of policies, what could not be loaded."""
        return [entry["message"] for entry in self._call("POST", "/se/log", {"type": "browser"})]

    def address(self) -> str:
        """Of the page that is shown."""
        return str(self._call("GET", "/url"))

    def resources(self) -> list[str]:
        """What the page has loaded, by address, itself left out."""
        return list(self.run("return performance.getEntriesByType('resource').map(entry => entry.name)"))

    def shoot(self, path: Path, height: int | None = None) -> None:
        """
        A picture of the page as a PNG file.

        @param height: how much of it from the top; all of it if left out.
        """
        wide, high = self.run("return [document.documentElement.clientWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": wide, "height": min(high, height or high), "scale": 1}
        found = self.develop("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(found["data"]))

    def type(self, selector: str, text: str) -> None:
        """As with a keyboard."""
        found = self._call("POST", "/element", {"using": "css selector", "value": selector})
        self._call("POST", f"/element/{next(iter(found.values()))}/value", {"text": text})

    def click(self, selector: str) -> None:
        """As with a mouse."""
        found = self._call("POST", "/element", {"using": "css selector", "value": selector})
        self._call("POST", f"/element/{next(iter(found.values()))}/click", {})


def contrast(one: list[float], other: list[float]) -> float:
    """WCAG 2's contrast of two colours, 1 to 21."""

    def luminance(colour: list[float]) -> float:
        parts = (part / 255 for part in colour)
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)
