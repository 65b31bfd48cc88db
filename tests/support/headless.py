"""Headless Chromium, driven through its DevTools pipe without a driver, websocket or port."""

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-default-apps",
    "--disable-dev-shm-usage",
    "--allow-file-access-from-files",
    "--hide-scrollbars",
)


KEY_CODES = {"Tab": 9, "Enter": 13, "Escape": 27, "PageUp": 33, "PageDown": 34, "End": 35, "Home": 36}
KEY_CODES |= {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}


def chromium() -> str | None:
    """Path of a Chromium on this machine, or None."""
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if path := shutil.which(name):
            return path
    return None


class Browser:
    """One page in a fresh Chromium. `events` collects the protocol's events."""

    def __init__(self, profile: Path, *, width: int = 1100, height: int = 900, dark: bool = False) -> None:
        program = chromium()
        assert program is not None
        to_child, self._write = os.pipe()
        self._read, from_child = os.pipe()
        # The browser reads null-terminated JSON from descriptor 3 and writes it to descriptor 4.
        script = f'exec "$0" "$@" 3<&{to_child} 4>&{from_child}'
        arguments = [*FLAGS, f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", script, program, *arguments],
            pass_fds=(to_child, from_child),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(to_child)
        os.close(from_child)
        self._buffer = b""
        self._numbers = itertools.count(1)
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.send(f"{domain}.enable")
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._session = None
            self.send("Browser.close")
        except (OSError, TimeoutError):
            self._process.kill()
        self._process.wait(timeout=20)
        os.close(self._write)
        os.close(self._read)

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive(30.0)
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self.events.append(answer)

    def open(self, url: str) -> None:
        """Go to `url` and wait for its load event."""
        before = len(self.events)
        self.send("Page.navigate", url=url)
        deadline = time.monotonic() + 30
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events[before:]):
            self.events.append(self._receive(deadline - time.monotonic()))

    def turn_to(self, fragment: str) -> None:
        """Change the address after its "#" and wait for the page's hashchange event."""
        heard = "new Promise(done => addEventListener('hashchange', () => done(true), {once: true}))"
        self.run(f"(() => {{ const heard = {heard}; location.hash = {json.dumps(fragment)}; return heard; }})()")

    def until(self, condition: str, seconds: float = 15.0) -> None:
        """Wait until a JavaScript expression is true in the page."""
        deadline = time.monotonic() + seconds
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < deadline, f"still not true in the page: {condition}"
            time.sleep(0.02)

    def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression in the page."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer.get("exceptionDetails")
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        code = KEY_CODES.get(key, 0)
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def write(self, text: str) -> None:
        """Type into the focused element."""
        self.send("Input.insertText", text=text)

    def point(self, x: float, y: float) -> None:
        """Move the mouse to a point in the window."""
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def touch(self, x: float, y: float) -> None:
        """Tap a point in the window."""
        self.send("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def downloads_to(self, folder: Path) -> None:
        """Let the page save files to this folder."""
        session, self._session = self._session, None  # a command to the browser, not to the page
        self.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
        self._session = session

    def screenshot(self, path: Path, whole: bool = False) -> Path:
        data = self.send(
            "Page.captureScreenshot",
            format="png",
            captureBeyondViewport=whole,
            **(self._clip() if whole else {}),
        )
        path.write_bytes(base64.b64decode(data["data"]))
        return path

    def requests(self) -> list[str]:
        """Addresses that the page requested."""
        return [
            event["params"]["request"]["url"]
            for event in self.events
            if event.get("method") == "Network.requestWillBeSent"
        ]

    def complaints(self) -> list[str]:
        """Log entries and uncaught exceptions of the page."""
        found = [event["params"]["entry"]["text"] for event in self.events if event.get("method") == "Log.entryAdded"]
        return found + [
            str(event["params"]) for event in self.events if event.get("method") == "Runtime.exceptionThrown"
        ]

    def _clip(self) -> dict[str, Any]:
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}

    def _receive(self, timeout: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError("chromium sent nothing on its DevTools pipe")
            part = os.read(self._read, 1 << 20)
            if not part:
                raise OSError("chromium closed its DevTools pipe")
            self._buffer += part
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)
