"""Debian's Chromium, told by its own protocol: what a page says, how long it takes, its picture."""

import asyncio
import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

PATIENCE_SECONDS = 120.0


def require_chromium() -> str:
    """The program; skips a test where it is missing, which in CI it may not be."""
    if program := shutil.which("chromium"):
        return program
    reason = "needs a browser: apt-get install --no-install-recommends chromium"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


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
        return asyncio.run(self._shown(url, ready=ready, picture=picture))

    async def _shown(self, url: str, *, ready: str, picture: Path | None) -> tuple[float, str]:
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{self._port}/json/list") as answer:
                pages = await answer.json()
            [page] = [each for each in pages if each["type"] == "page"]
            # A picture is larger than a message may be by default.
            async with session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                number = 0

                async def call(method: str, **parameters: Any) -> Any:
                    nonlocal number
                    number += 1
                    await socket.send_json({"id": number, "method": method, "params": parameters})
                    while True:
                        told = json.loads((await socket.receive()).data)
                        if told.get("id") == number:
                            assert "error" not in told, told
                            return told["result"]

                async def evaluate(expression: str) -> Any:
                    told = await call("Runtime.evaluate", expression=expression, returnByValue=True)
                    return told["result"].get("value")

                begun = time.monotonic()
                await call("Page.navigate", url=url)
                is_ready = False
                while not is_ready and time.monotonic() - begun < PATIENCE_SECONDS:
                    is_ready = await evaluate(ready)
                    await asyncio.sleep(0.02)
                seconds = time.monotonic() - begun
                text = await evaluate("document.body.innerText")
                if picture is not None:
                    await asyncio.sleep(1.0)  # what fades in
                    taken = await call("Page.captureScreenshot", format="png")
                    picture.write_bytes(base64.b64decode(taken["data"]))
                assert is_ready, f"{url} never was as it should be: {text}"
        return seconds, text


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
