"""A real browser for tests: headless Chromium, driven over a pipe by its DevTools protocol, with no library between.

`https://chromedevtools.github.io/devtools-protocol/` names the methods and events that are used here. Each tab has
cookies and storage of its own. No name but the machine's own resolves: a page that needs the network says so.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

PROGRAMS: Final = ("chromium", "chromium-browser", "google-chrome")
VARIABLE: Final = "CONVSCALE_CHROMIUM"
PATIENCE_S: Final = 180.0  # a busy machine is slow
_RESTS: Final = 3  # looks in a row, 30 ms apart, at which an element is in the same place
_FLAGS: Final = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",  # small in containers
    "--disable-gpu",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
    "--no-proxy-server",
)


class BrowserError(Exception):
    """The browser ended, did not answer, or could not do what it was told."""


def find_chromium() -> str | None:
    """The browser to use: $CONVSCALE_CHROMIUM if that is set, else one that is installed, or None.

    Raises `BrowserError` if the one that is named is not there.
    """
    if named := os.environ.get(VARIABLE):
        if shutil.which(named) is None:
            raise BrowserError(f"${VARIABLE}: {named!r} given, which is no program here; install it, or name another")
        return named
    return next((program for program in PROGRAMS if shutil.which(program)), None)


class Chromium:
    """A running browser. `call` sends a command and waits for its answer; events that come meanwhile go to the tabs."""

    def __init__(self, process: subprocess.Popen[bytes], to_it: int, from_it: int) -> None:
        self._process, self._to_it, self._from_it = process, to_it, from_it
        self._last, self._rest = 0, b""
        self._messages: deque[dict[str, Any]] = deque()
        self.listeners: dict[str, Callable[[dict[str, Any]], None]] = {}  # by session

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Raises `BrowserError` if the browser refuses, ends, or takes longer than `PATIENCE_S`."""
        self._last += 1
        number = self._last
        message = {"id": number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self._to_it, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE_S
        while True:
            answer = self._receive(deadline, method)
            if answer.get("id") == number:
                if error := answer.get("error"):
                    raise BrowserError(f"{method}: {error['message']}")
                result: dict[str, Any] = answer["result"]
                return result

    def wait(self, happened: Callable[[], bool], what: str) -> None:
        """Take events until `happened`; `what` names it if it does not."""
        deadline = time.monotonic() + PATIENCE_S
        while not happened():
            self._receive(deadline, what)

    def _receive(self, deadline: float, what: str) -> dict[str, Any]:
        while not self._messages:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._from_it], [], [], left)[0]:
                raise BrowserError(f"{what}: nothing came for {PATIENCE_S:g} s")
            if not (read := os.read(self._from_it, 1 << 20)):
                raise BrowserError(f"{what}: the browser has ended, with status {self._process.wait()}")
            *whole, self._rest = (self._rest + read).split(b"\0")
            self._messages.extend(map(json.loads, whole))
        message = self._messages.popleft()
        if (listener := self.listeners.get(message.get("sessionId", ""))) is not None and "method" in message:
            listener(message)
        return message


@contextlib.contextmanager
def chromium(program: str) -> Iterator[Chromium]:
    """Start a browser, with a profile of its own; it ends with all its processes."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, contextlib.ExitStack() as ends:

        def pipe() -> tuple[int, int]:
            """Above the numbers 3 and 4, at which the browser expects its ends."""
            low = os.pipe()
            high = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in low)
            for end in low:
                os.close(end)
            return high[0], high[1]

        its_input, to_it = pipe()
        from_it, its_output = pipe()
        ends.callback(os.close, from_it)
        flags = [*_FLAGS, f"--user-data-dir={profile}", *(["--no-sandbox"] if os.getuid() == 0 else [])]
        process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{its_input} 4>&{its_output}', "bash", program, *flags, "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(its_input, its_output),
            start_new_session=True,
        )
        os.close(its_input)
        os.close(its_output)
        try:
            yield Chromium(process, to_it, from_it)
        finally:
            os.close(to_it)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@dataclass(slots=True)
class Tab:
    """A page of a browser.

    `errors` are what its console calls errors: exceptions, requests that failed, and what the page itself logs as one.
    `requests` are the addresses it asked for, its own first (without those that lie in it: data:, blob:).
    """

    browser: Chromium
    session: str
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    _settled: set[str] = field(default_factory=set)

    def open(self, url: str, width: int = 1280, height: int = 900, *, phone: bool = False) -> None:
        """Load a page, and wait until it and all that it asks for are there. `phone`: by a phone's rules of layout."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self._settled.clear()
        answer = self._call("Page.navigate", url=url)
        if reason := answer.get("errorText"):
            raise BrowserError(f"{url}: {reason}")
        loader = answer.get("loaderId")  # none where only the part behind # changes
        if loader is not None:
            self.browser.wait(lambda: loader in self._settled, url)

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression in the page (of its promise, if it is one), as JSON has it."""
        answer = self._call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if wrong := answer.get("exceptionDetails"):
            raise BrowserError(_said(wrong))
        return answer["result"].get("value")

    def until(self, condition: str, timeout_s: float = PATIENCE_S - 5) -> Any:
        """Wait until a JavaScript expression is true in the page; returns its value (true for an element)."""
        answer = self.evaluate(
            f"""new Promise(done => {{
                const until = performance.now() + {1000 * timeout_s};
                const look = () => {{
                    const value = ({condition});
                    if (value) done([value instanceof Node ? true : value]);
                    else if (performance.now() > until) done(null);
                    else setTimeout(look, 30);
                }};
                look();
            }})"""
        )
        if answer is None:
            raise BrowserError(f"not true within {timeout_s:g} s: {condition}; the page says: {self.text()[:2000]}")
        return answer[0]

    def click(self, x: float, y: float) -> None:
        """Click at a place, in CSS pixels from the top left of what is shown."""
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def click_on(self, selector: str) -> None:
        """Click at the middle of an element, by its CSS selector, once it is there, enabled, at rest and not covered:
        on a busy machine a page may still move what was just drawn, and a click would go beside it.
        """
        x, y = self.until(
            f"""(() => {{
                const element = document.querySelector({json.dumps(selector)});
                if (!element || element.matches(':disabled')) return null;
                element.scrollIntoView({{block: 'center', behavior: 'instant'}});
                const box = element.getBoundingClientRect();
                const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
                const place = [x, y].join();
                const last = window.lastPlace ?? {{}};
                const rests = last.element === element && last.place === place ? last.rests + 1 : 0;
                window.lastPlace = {{element, place, rests}};
                const above = document.elementFromPoint(x, y);
                const free = above !== null && (element.contains(above) || above.contains(element));
                return rests >= {_RESTS} && free ? [x, y] : null;
            }})()"""
        )
        self.click(x, y)

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self._call("Input.insertText", text=text)

    def press(self, key: str, code: int) -> None:
        """Press a key that is no letter, such as Enter (13)."""
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            self._call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **text)

    def text(self) -> str:
        """What a reader sees of the page as it is now, as text."""
        return str(self.evaluate("document.body.innerText"))

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """Write what is shown as PNG; `whole`: the page in its full height."""
        answer = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=whole, **self._clip(whole))
        path.write_bytes(base64.b64decode(answer["data"]))

    def page_text(self, url: str) -> str:
        """Open a page; what a reader sees of it, as text."""
        self.open(url)
        return self.text()

    def screenshot(
        self, url: str, path: Path, width: int = 1280, height: int = 900, *, whole: bool = False, phone: bool = False
    ) -> None:
        """Open a page in a window of so many CSS pixels and write it as PNG; see `open` and `picture`."""
        self.open(url, width, height, phone=phone)
        self.picture(path, whole=whole)

    def _clip(self, whole: bool) -> dict[str, Any]:
        if not whole:
            return {}
        size = self._call("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        return self.browser.call(method, self.session, **params)

    def _hear(self, message: dict[str, Any]) -> None:
        params = message["params"]
        match message["method"]:
            case "Page.lifecycleEvent" if params["name"] == "networkIdle":
                self._settled.add(params["loaderId"])
            case "Runtime.exceptionThrown":
                self.errors.append(_said(params["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "assert"):
                self.errors.append(" ".join(str(a.get("value", a.get("description", ""))) for a in params["args"]))
            case "Log.entryAdded" if params["entry"]["level"] == "error":
                self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}".strip())
            case "Network.requestWillBeSent" if not params["request"]["url"].startswith(("data:", "blob:")):
                self.requests.append(params["request"]["url"])


def _said(details: dict[str, Any]) -> str:
    return str(details.get("exception", {}).get("description") or details["text"])


@contextlib.contextmanager
def tab(browser: Chromium) -> Iterator[Tab]:
    """A new page with cookies and storage of its own."""
    context = browser.call("Target.createBrowserContext")["browserContextId"]
    target = browser.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
    session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    page = Tab(browser, session)
    browser.listeners[session] = page._hear
    for domain in ("Page", "Runtime", "Log", "Network"):
        browser.call(f"{domain}.enable", session)
    browser.call("Page.setLifecycleEventsEnabled", session, enabled=True)
    try:
        yield page
    finally:
        del browser.listeners[session]
        browser.call("Target.disposeBrowserContext", browserContextId=context)
