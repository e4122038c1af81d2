"""A headless Chromium that tests drive: pages from disk, real pointer and key events, what the page
logged and asked the network for.

It speaks the DevTools protocol over a pair of pipes (`--remote-debugging-pipe`: JSON messages that
end with a zero byte), for which Python's own modules are enough. Unix only.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_SHIFT = 8  # the protocol's bit for the shift key
WAIT = 60.0  # seconds for any one answer


def find_chromium() -> str | None:
    """The browser's program: CIRCUITS_CHROMIUM, or the first of its names on PATH; or None."""
    named = os.environ.get("CIRCUITS_CHROMIUM")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, _NAMES)), None)


class Chromium:
    """A browser process with a profile of its own; use it in a `with` block, which ends it."""

    def __init__(self, program: str) -> None:
        self._home = tempfile.mkdtemp(prefix="chromium-")
        # Above 10: the child's ends become its descriptors 3 and 4, which must not be ours.
        ends = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (*os.pipe(), *os.pipe())]
        child_in, self._to, self._from, child_out = ends
        arguments = [
            program,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--remote-debugging-pipe",
            f"--user-data-dir={self._home}",
            "about:blank",
        ]
        silent = os.open(os.devnull, os.O_RDWR)
        self._process = os.posix_spawn(
            program,
            arguments,
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, silent, 1),
                (os.POSIX_SPAWN_DUP2, silent, 2),
                (os.POSIX_SPAWN_DUP2, child_in, 3),
                (os.POSIX_SPAWN_DUP2, child_out, 4),
            ],
            setpgroup=0,
        )
        for fd in (silent, child_in, child_out):
            os.close(fd)
        self._rest, self._number = b"", 0
        self._answers: dict[int, Any] = {}
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Chromium:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)
        os.close(self._to)
        os.close(self._from)
        shutil.rmtree(self._home, ignore_errors=True)

    def call(self, method: str, session: str | None = None, **given: Any) -> Any:
        """Send a command and return its result; raises `RuntimeError` where the browser refuses."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": given}
        if session:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._to, data) :]
        number = self._number
        self.wait(lambda: number in self._answers, method)
        answer = self._answers.pop(number)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def wait(self, ready: Any, what: str) -> None:
        """Take messages in until `ready()`; raises `TimeoutError`."""
        end = time.monotonic() + WAIT
        while not ready():
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._from], [], [], left)[0]:
                raise TimeoutError(f"chromium did not answer in time: {what}")
            data = os.read(self._from, 1 << 20)
            if not data:
                raise RuntimeError("chromium has ended")
            *whole, self._rest = (self._rest + data).split(b"\0")
            for one in map(json.loads, whole):
                if "id" in one:
                    self._answers[one["id"]] = one
                else:
                    self.events.append(one)

    @property
    def downloads(self) -> list[str]:
        """The names under which files were saved, those that are whole."""
        events = [event for event in self.events if event["method"].startswith("Browser.download")]
        names = {
            event["params"]["guid"]: event["params"]["suggestedFilename"]
            for event in events
            if "suggestedFilename" in event["params"]
        }
        return [
            names[event["params"]["guid"]]
            for event in events
            if event["params"].get("state") == "completed"
        ]

    def open(self, path: Path | str, width: int = 950, height: int = 900) -> Page:
        """A page from disk in a tab of its own, once it has loaded."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        return Page(self, attached["sessionId"], Path(path).resolve().as_uri(), width, height)


class Page:
    """A tab. `problems`: what was logged as an error or thrown; `requests`: all addresses it asked
    for, its own first."""

    def __init__(self, browser: Chromium, session: str, url: str, width: int, height: int) -> None:
        self._browser, self._session = browser, session
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.resize(width, height)
        self.call("Page.navigate", url=url)
        browser.wait(lambda: self._events("Page.loadEventFired"), f"loading {url}")

    def call(self, method: str, **given: Any) -> Any:
        """A command to this tab."""
        return self._browser.call(method, self._session, **given)

    def resize(self, width: int, height: int) -> None:
        """Set the window's inner size, in pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def _events(self, method: str) -> list[dict[str, Any]]:
        return [
            event["params"]
            for event in self._browser.events
            if event.get("sessionId") == self._session and event["method"] == method
        ]

    @property
    def problems(self) -> list[Any]:
        """Errors and warnings, logged or thrown."""
        thrown = self._events("Runtime.exceptionThrown")
        said = [e for e in self._events("Runtime.consoleAPICalled") if e["type"] != "log"]
        return thrown + said + self._events("Log.entryAdded")

    @property
    def requests(self) -> list[str]:
        """Addresses that were asked for."""
        return [event["request"]["url"] for event in self._events("Network.requestWillBeSent")]

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression (awaited if it is a promise)."""
        found = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"])
        return found["result"].get("value")

    def text(self, selector: str) -> str:
        """The text of an element as it is read, on one line."""
        made = f"document.querySelector({json.dumps(selector)})"
        found = self.run(f"((made) => made.innerText ?? made.textContent)({made})")
        return " ".join(found.split())

    def painted(self, selector: str) -> int:
        """How many points of a canvas are not empty."""
        return self.run(
            f"(() => {{ const c = document.querySelector({json.dumps(selector)}); let n = 0;"
            "const copy = new OffscreenCanvas(c.width, c.height);"
            "const context = copy.getContext('2d', {willReadFrequently: true});"
            "context.drawImage(c, 0, 0);"
            "const all = context.getImageData(0, 0, c.width, c.height).data;"
            "for (let i = 3; i < all.length; i += 4) n += all[i] > 0; return n; })()"
        )

    def middle(self, selector: str) -> tuple[float, float]:
        """Where the middle of an element is in the window, which is scrolled to show it."""
        x, y = self.run(
            "(() => { const made = document.querySelector(" + json.dumps(selector) + ");"
            "made.scrollIntoView({block: 'nearest'}); const b = made.getBoundingClientRect();"
            "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        return x, y

    def mouse(self, kind: str, at: tuple[float, float], **given: Any) -> None:
        """A pointer event at a place in the window."""
        self.call("Input.dispatchMouseEvent", type=kind, x=at[0], y=at[1], **given)

    def move(self, selector: str) -> None:
        """Point at an element, and let the page take a frame."""
        self.mouse("mouseMoved", self.middle(selector))
        self.frame()

    def click(self, selector: str, shift: bool = False) -> None:
        """Click the middle of an element."""
        at, held = self.middle(selector), {"modifiers": _SHIFT if shift else 0}
        self.mouse("mouseMoved", at, **held)
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, at, button="left", clickCount=1, **held)
        self.frame()

    def press(self, key: str, code: int) -> None:
        """Press a key, such as "Escape" (27)."""
        given = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        typed = {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **given, **typed)
        self.call("Input.dispatchKeyEvent", type="keyUp", **given)
        self.frame()

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.call("Input.insertText", text=text)

    def frame(self) -> None:
        """Wait until what is pending has been drawn."""
        self.run("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")

    def timed(self, script: str) -> float:
        """Milliseconds from the start of what a script does until the frame that shows it."""
        return self.run(
            "(async () => { const drawn = () => new Promise("
            "(done) => requestAnimationFrame(() => setTimeout(done)));"
            "await drawn(); const start = performance.now();"
            f"{{ {script} }}"
            "document.body.getBoundingClientRect(); await drawn();"
            "return performance.now() - start; })()"
        )

    def picture(self, path: Path | str, *, whole: bool = False) -> None:
        """Save what is seen as PNG, or the whole page."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        Path(path).write_bytes(base64.b64decode(data))

    def download(self, selector: str, folder: Path) -> Path:
        """Click what saves a file, and return where it was saved."""
        given = {"behavior": "allow", "downloadPath": str(folder), "eventsEnabled": True}
        self._browser.call("Browser.setDownloadBehavior", **given)
        before = len(self._browser.downloads)
        self.click(selector)
        self._browser.wait(lambda: len(self._browser.downloads) > before, "a download")
        return folder / self._browser.downloads[-1]
