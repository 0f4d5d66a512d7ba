"""Chromium without a window, driven through its DevTools protocol."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp

from tests.sandbox.process import Process

FLAGS = (
    "--headless",
    "--no-sandbox",  # root has none
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-port=0",
    "--window-size=1280,1000",
)


class Page:
    """One tab. Requests and answers of everything it has loaded are kept."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self.requested: list[str] = []
        self.failed: list[str] = []
        self.errors: list[str] = []
        self._loaded = False

    async def call(self, method: str, **parameters: Any) -> Any:
        """Call a method; events that come before its answer are noted."""
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = await self._next()
            if message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]

    async def _next(self) -> Any:
        message = json.loads(await self._socket.receive_str(timeout=60))
        parameters = message.get("params", {})
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requested.append(parameters["request"]["url"])
            case "Network.responseReceived" if parameters["response"]["status"] >= 400:
                self.failed.append(f"{parameters['response']['status']} {parameters['response']['url']}")
            case "Runtime.exceptionThrown":
                self.errors.append(parameters["exceptionDetails"]["text"])
            case "Page.loadEventFired":
                self._loaded = True
        return message

    async def open(self, url: str) -> None:
        """Go there, and wait until it has loaded."""
        self._loaded = False
        await self.call("Page.navigate", url=url)
        while not self._loaded:
            await self._next()

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        answer = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        return answer["result"].get("value")

    async def elements(self) -> Iterator[dict[str, Any]]:
        """All nodes of the page, those in closed shadow trees too, where Material puts what it has drawn."""
        root = (await self.call("DOM.getDocument", depth=-1, pierce=True))["root"]
        return _walk(root)


def _walk(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in (*node.get("children", ()), *node.get("shadowRoots", ())):
        yield from _walk(child)


@contextlib.asynccontextmanager
async def open_page(folder: Path) -> AsyncIterator[Page]:
    """Start a browser with an empty profile in a folder, and one tab."""
    command = ["chromium", *FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"]
    with Process(command, folder / "chromium.log") as chromium:
        address = chromium.wait_for_output(r"listening on ws://([\d.:]+)/", timeout=60)[1]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://{address}/json/list") as answer:
                tab = next(target for target in await answer.json() if target["type"] == "page")
            async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = Page(socket)
                for domain in ("Page", "Network", "Runtime", "DOM"):
                    await page.call(f"{domain}.enable")
                yield page
