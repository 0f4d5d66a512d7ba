"""Programs started beside gRPC's threads start, and leave its connections alone."""

from __future__ import annotations

import os
import subprocess
import sys

STARTS_PROGRAMS_WHILE_CALLS_ARE_MADE = """
from kiam.grpc_core import prepare_grpc
prepare_grpc()
import asyncio, grpc, uvloop
from grpc import aio

class Echo(grpc.GenericRpcHandler):
    def service(self, details):
        async def answer(request, context):
            return request
        return grpc.unary_unary_rpc_method_handler(answer)

async def call(port, ended):
    while not ended.is_set():
        async with aio.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
            for _ in range(5):
                await channel.unary_unary("/a/b")(b"x")

async def main():
    server, ended = aio.server(handlers=[Echo()]), asyncio.Event()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    calls = [asyncio.create_task(call(port, ended)) for _ in range(3)]
    for _ in range(200):
        program = await asyncio.create_subprocess_exec("/bin/true")
        assert await program.wait() == 0
    ended.set()
    await asyncio.gather(*calls)
    await server.stop(0)

uvloop.run(main())
"""


def test_programs_can_be_started_while_calls_are_made() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")}
    command = [sys.executable, "-c", STARTS_PROGRAMS_WHILE_CALLS_ARE_MADE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
