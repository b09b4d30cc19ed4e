"""Debian's Chromium, told by its own protocol: what a page says, how long it takes, its picture."""

import asyncio
import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Coroutine, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pytest

PATIENCE_SECONDS = 120.0
Result = TypeVar("Result")


def require_chromium() -> str:
    """The program; skips a test where it is missing, which in CI it may not be."""
    if program := shutil.which("chromium"):
        return program
    reason = "needs a browser: apt-get install --no-install-recommends chromium"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


class Tab:
    """What is done on a page, and what it says.

    Args:
        socket: of the browser's protocol.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0
        self.asked: list[str] = []
        """Addresses that the page has asked for."""

    async def call(self, method: str, **parameters: Any) -> Any:
        """Have the browser do something."""
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            told = json.loads((await self._socket.receive()).data)
            if told.get("method") == "Network.requestWillBeSent":
                self.asked.append(told["params"]["request"]["url"])
            if told.get("id") == self._number:
                assert "error" not in told, told
                return told["result"]

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        told = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return told["result"].get("value")

    async def text(self) -> str:
        """All that is to be read."""
        return await self.evaluate("document.body.innerText")

    async def until(self, ready: str) -> None:
        """Wait until a JavaScript expression is true."""
        begun = time.monotonic()
        while not await self.evaluate(ready):
            if time.monotonic() - begun > PATIENCE_SECONDS:
                raise AssertionError(f"it never was {ready}: {await self.text()}")
            await asyncio.sleep(0.02)

    async def open(self, url: str, *, ready: str) -> float:
        """Open an address; seconds until the page was ready."""
        begun = time.monotonic()
        await self.call("Network.enable")
        await self.call("Page.navigate", url=url)
        await self.until(ready)
        return time.monotonic() - begun

    async def show_files(self, place: str, files: Sequence[Path]) -> None:
        """Give files to the input that a CSS selector names, as whoever picks them does."""
        root = (await self.call("DOM.getDocument"))["root"]["nodeId"]
        found = await self.call("DOM.querySelector", nodeId=root, selector=place)
        names = [str(file) for file in files]
        await self.call("DOM.setFileInputFiles", nodeId=found["nodeId"], files=names)

    async def write(self, place: str, text: str) -> None:
        """Type a text where a CSS selector says."""
        await self.evaluate(f"document.querySelector({json.dumps(place)}).focus()")
        await self.call("Input.insertText", text=text)

    async def press(self, key: str, code: int) -> None:
        """Press a key, such as Enter (13)."""
        named = {"key": key, "code": key, "windowsVirtualKeyCode": code, "text": "\r"}
        await self.call("Input.dispatchKeyEvent", type="keyDown", **named)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **named)

    async def photograph(self, picture: Path) -> None:
        """Take a picture of it."""
        await asyncio.sleep(1.0)  # what fades in
        taken = await self.call("Page.captureScreenshot", format="png")
        picture.write_bytes(base64.b64decode(taken["data"]))


class Page:
    """A page of a browser.

    Args:
        port: on which the browser is told what to do.
    """

    def __init__(self, port: int) -> None:
        self._port = port

    def shown(self, url: str, *, ready: str, picture: Path | None = None) -> tuple[float, str]:
        """Open a page and wait until it is as it should be.

        Args:
            url: of the page.
            ready: a JavaScript expression that is true then.
            picture: a file for a picture of it.

        Returns:
            Seconds from asking for the page until it was ready, and its text.
        """

        async def show(tab: Tab) -> tuple[float, str]:
            seconds = await tab.open(url, ready=ready)
            if picture is not None:
                await tab.photograph(picture)
            return seconds, await tab.text()

        return self.driven(show)

    def driven(self, steps: Callable[[Tab], Coroutine[Any, Any, Result]]) -> Result:
        """Do on the page what a function does."""
        return asyncio.run(self._driven(steps))

    async def _driven(self, steps: Callable[[Tab], Coroutine[Any, Any, Result]]) -> Result:
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{self._port}/json/list") as answer:
                pages = await answer.json()
            [page] = [each for each in pages if each["type"] == "page"]
            # A picture is larger than a message may be by default.
            async with session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                return await steps(Tab(socket))


@contextmanager
def browser(*, width: int = 1280, height: int = 900) -> Generator[Page]:
    """A browser with one empty page, while the context lasts."""
    program = require_chromium()
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [
                *(program, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
                *("--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking"),
                *("--remote-debugging-port=0", f"--user-data-dir={profile}"),
                *(f"--window-size={width},{height}", "about:blank"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            told = Path(profile) / "DevToolsActivePort"
            deadline = time.monotonic() + PATIENCE_SECONDS
            while not (told.exists() and told.read_text().count("\n")):
                assert process.poll() is None, "the browser has ended"
                assert time.monotonic() < deadline, "the browser does not come up"
                time.sleep(0.05)
            yield Page(int(told.read_text().splitlines()[0]))
        finally:
            process.kill()
            process.wait()
