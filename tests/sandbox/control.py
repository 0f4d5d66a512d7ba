"""How a test drives a sandbox process: JSON over HTTP on a Unix socket, which no network namespace hides."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from aiohttp import web


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("sandbox", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Control:
    """The test's end. Calls block."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def call(self, operation: str, *, timeout: float = 60.0, **arguments: Any) -> Any:
        """Run an operation over there; its result. Raises RuntimeError with the other end's words if it failed."""
        connection = _UnixConnection(self.path, timeout)
        try:
            connection.request("POST", f"/{operation}", json.dumps(arguments), {"Content-Type": "application/json"})
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise RuntimeError(f"{operation}: {body.decode(errors='replace')}")
        return json.loads(body)


@contextlib.asynccontextmanager
async def serve_control(path: Path, operations: Any) -> AsyncIterator[None]:
    """Serve the public coroutine methods of an object on a Unix socket."""

    async def handle(request: web.Request) -> web.Response:
        operation = getattr(operations, request.match_info["operation"])
        return web.json_response(await operation(**await request.json()))

    application = web.Application(client_max_size=1 << 30)
    application.router.add_post(r"/{operation:[a-z]\w+}", handle)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0)
    await runner.setup()
    await web.UnixSite(runner, str(path)).start()
    try:
        yield
    finally:
        await runner.cleanup()
