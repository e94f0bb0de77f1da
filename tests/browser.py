"""Headless Chromium driven through its debugging pipe, and a static web server: standard library only."""

from __future__ import annotations

import base64
import functools
import http.server
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"),
    *("--disable-component-update", "--no-first-run", "--hide-scrollbars", "--disable-dev-shm-usage"),
    *("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # no other machine can be reached
)


def chromium() -> str | None:
    """The browser's path, where there is one."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, list[str], Callable[[], None]]]:
    """(address, lines "METHOD PATH" of what was asked, a function that stops it) of a folder's server."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            asked.append(f"{self.command} {self.path}")

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()

    def stop() -> None:
        server.shutdown()
        server.server_close()

    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/", asked, stop
    finally:
        stop()


class Tab:
    """One page of a browser."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read, self._rest, self._count = write, read, b"", 0
        target = self.call("Target.createTarget", {"url": "about:blank"}, session=None)["targetId"]
        wanted = {"targetId": target, "flatten": True}
        self._session = self.call("Target.attachToTarget", wanted, session=None)["sessionId"]

    def call(self, method: str, params: dict[str, Any], session: str | None = "own") -> dict[str, Any]:
        """What the browser answers to one command."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": params}
        if session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._rest:
                self._rest += os.read(self._read, 1 << 20)
            line, _, self._rest = self._rest.partition(b"\0")
            found = json.loads(line)
            if found.get("id") == self._count:
                assert "error" not in found, found
                result: dict[str, Any] = found["result"]
                return result

    def value(self, expression: str) -> Any:
        """What a line of JavaScript gives; promises are waited for."""
        asked = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        return self.call("Runtime.evaluate", asked)["result"].get("value")

    def wait(self, expression: str, seconds: float = 120) -> Any:
        """The first true value of an expression."""
        until = time.monotonic() + seconds
        while not (found := self.value(expression)):
            assert time.monotonic() < until, (
                f"{expression} stayed {found!r}: {self.value('document.body.innerText')}"
            )
            time.sleep(0.1)
        return found

    def go(self, address: str) -> None:
        """Opens a page."""
        self.call("Page.navigate", {"url": address})

    def picture(self, path: Path, width: int, height: int) -> None:
        """A PNG of the page."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", size)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", {})["data"]))


@contextmanager
def tab(profile: Path) -> Iterator[Tab]:
    """A page of a browser of its own, closed at the end."""
    to, from_ = os.pipe(), os.pipe()

    def connect() -> None:  # the browser reads commands from 3 and answers on 4
        one, two = os.dup(to[0]), os.dup(from_[1])
        os.dup2(one, 3)
        os.dup2(two, 4)

    words = [str(chromium()), *FLAGS, "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    process = subprocess.Popen(
        words, preexec_fn=connect, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield Tab(to[1], from_[0])
    finally:
        process.terminate()
        process.wait(20)
        for end in (*to, *from_):
            os.close(end)
