"""A client program: GetPodCredentials as fast as so many concurrent calls go; prints the figures as JSON."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import time
from pathlib import Path
from typing import Any

import grpc
import uvloop
from grpc import aio

from kiam.rpc import kiam_pb2, kiam_pb2_grpc
from kiam.tls import TLSFiles
from kiam.tls.tunnel import Tunnel


async def _load(stub: Any, addresses: list[str], role: str, concurrency: int, seconds: float) -> list[float]:
    times: list[float] = []
    end = time.monotonic() + seconds

    async def caller(first: int) -> None:
        number = first
        while (started := time.monotonic()) < end:
            request = kiam_pb2.GetPodCredentialsRequest(ip=addresses[number % len(addresses)], role=role)
            await stub.GetPodCredentials(request, timeout=10)
            times.append(time.monotonic() - started)
            number += concurrency

    await asyncio.gather(*(caller(first) for first in range(concurrency)))
    return times


async def _main(arguments: argparse.Namespace) -> None:
    material = TLSFiles(arguments.cert, arguments.key, arguments.ca).read()
    async with contextlib.AsyncExitStack() as stack:
        if arguments.tunnel:
            host, _, port = arguments.server.rpartition(":")
            tunnel = Tunnel(host, int(port), lambda: material)
            tunnel.start()
            stack.callback(tunnel.close)
            channel = aio.insecure_channel(tunnel.target)
        else:
            credentials = grpc.ssl_channel_credentials(material.ca, material.key, material.cert)
            channel = aio.secure_channel(arguments.server, credentials)
        await stack.enter_async_context(channel)
        stub: Any = kiam_pb2_grpc.KiamServiceStub(channel)
        addresses = arguments.addresses.split(",")
        await _load(stub, addresses, arguments.role, 1, 0.5)
        times = sorted(await _load(stub, addresses, arguments.role, arguments.concurrency, arguments.seconds))
    figures = {
        "calls_per_s": round(len(times) / arguments.seconds),
        "p50_ms": round(statistics.median(times) * 1000, 2),
        "p99_ms": round(times[int(len(times) * 0.99)] * 1000, 2),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--server", required=True)
    parser.add_argument("--cert", type=Path, required=True)
    parser.add_argument("--key", type=Path, required=True)
    parser.add_argument("--ca", type=Path, required=True)
    parser.add_argument("--addresses", required=True)
    parser.add_argument("--role", required=True)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument(
        "--tunnel", action="store_true", help="do TLS outside gRPC, as for a server's 'any' certificate"
    )
    uvloop.run(_main(parser.parse_args()))
