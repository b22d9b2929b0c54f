"""The few calls of the WebDriver protocol that the tests need, over the standard library."""

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
WAIT_SECONDS = 60


class Browser:
    """A session: pages, scripts, the console, and the emulation of screens."""

    def __init__(self, address: str, profile: Path):
        options = {"binary": CHROMIUM, "args": [*ARGUMENTS, f"--user-data-dir={profile}"]}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self._url = f"{address}/session"
        self._url += "/" + self._post("", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        data = json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=WAIT_SECONDS) as answer:
            return json.loads(answer.read())["value"]

    def open(self, path: Path) -> None:
        self._post("/url", {"url": path.as_uri()})

    def script(self, code: str) -> Any:
        return self._post("/execute/sync", {"script": code, "args": []})

    def console(self) -> list[str]:
        """Messages since the last call, errors of loading and of scripts among them."""
        return [f"{row['level']}: {row['message']}" for row in self._post("/se/log", {"type": "browser"})]

    def screen(self, width: int, *, scheme: str = "light", media: str = "") -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self._cdp("Emulation.setDeviceMetricsOverride", metrics)
        self._cdp("Emulation.setEmulatedMedia", {"features": features, "media": media})

    def point_at(self, x: float, y: float) -> None:
        self._cdp("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x, "y": y})

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self._cdp("Input.dispatchKeyEvent", {"type": kind, "key": key})

    def _cdp(self, command: str, parameters: dict[str, Any]) -> None:
        self._post("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def close(self) -> None:
        request = urllib.request.Request(self._url, method="DELETE")
        urllib.request.urlopen(request, timeout=WAIT_SECONDS).close()


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser with a profile in `folder`; both processes end with the context."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (folder / "driver.log").open("w") as log:
        driver = subprocess.Popen([CHROMEDRIVER, f"--port={port}"], stdout=log, stderr=log)
        try:
            _wait_for(port)
            session = Browser(f"http://127.0.0.1:{port}", folder / "profile")
            try:
                yield session
            finally:
                session.close()
        finally:
            driver.terminate()
            driver.wait(WAIT_SECONDS)


def _wait_for(port: int) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
