"""A company's HTTP proxy: passes on what is asked of it (absolute URLs and CONNECT), and tells each on its output."""

from __future__ import annotations

import argparse
import asyncio
from base64 import b64encode
from urllib.parse import urlsplit


class ForwardProxy:
    """Wants the user and password of ``credentials``, if any are given."""

    def __init__(self, credentials: str) -> None:
        self._wanted = b"Basic " + b64encode(credentials.encode()) if credentials else b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, for one request or one tunnel."""
        try:
            request = await reader.readuntil(b"\r\n\r\n")
            method, target, _ = request.split(b"\r\n", 1)[0].decode().split(" ")
            print(f"asked: {method} {target}", flush=True)
            if self._wanted and self._wanted not in request:
                writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
                return
            url = urlsplit(f"//{target}" if method == "CONNECT" else target)
            there, back = await asyncio.open_connection(url.hostname, url.port or 80)
            if method == "CONNECT":
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                back.write(request.replace(target.encode(), (url.path + "?" + url.query).encode(), 1))
            await asyncio.gather(_copy(reader, back), _copy(there, writer))
        except (OSError, asyncio.IncompleteReadError, ValueError):
            pass
        finally:
            writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


async def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", required=True)
    parser.add_argument("--credentials", default="")
    arguments = parser.parse_args()
    server = await asyncio.start_server(ForwardProxy(arguments.credentials).serve, arguments.host, 3128)
    print("listening", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main())
