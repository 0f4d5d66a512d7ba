"""GetPodCredentials with certificates for the usage ``any``, beside proper ones, in one run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.x509.oid import ExtendedKeyUsageOID

from kiam.tls import TLSFiles
from tests.bench.server import call, called_pods, running_server
from tests.sandbox.aws import AwsProcess
from tests.sandbox.certificates import Authority, write
from tests.sandbox.kubeapi import KubeApiProcess

ROUNDS = 5
CALL_SECONDS = 3.0
CONCURRENCIES = (1, 64)
ANY = [ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]
CLIENT = [ExtendedKeyUsageOID.CLIENT_AUTH]
SERVER = [ExtendedKeyUsageOID.SERVER_AUTH]
KINDS = {"proper": (SERVER, CLIENT), "the agent's for any": (SERVER, ANY), "both for any": (ANY, ANY)}


def measure(say: Callable[[str], None]) -> list[dict[str, Any]]:
    """A row for each kind of certificates and number of callers; the kinds take turns.

    With a server's certificate for any usage, an agent in Python does TLS outside gRPC; one in Go doesn't have to.
    """
    authority = Authority.make()
    with (
        tempfile.TemporaryDirectory(prefix="kiam-bench-") as name,
        AwsProcess(Path(name, "aws")) as aws,
        KubeApiProcess(Path(name, "kube")) as kube,
    ):

        def files(folder: str, usages: list[Any]) -> TLSFiles:
            issued = authority.sign_for_usages(usages, ["localhost"], addresses=["127.0.0.1"])
            return write(Path(name, folder), issued, authority.pem)

        addresses = called_pods(kube)
        figures: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for number in range(ROUNDS):
            for kind, (servers, agents) in KINDS.items():
                folder = f"{number}-{kind.replace(' ', '-')}"
                flags = ["--tunnel"] if servers is ANY else []
                with running_server(Path(name, folder), aws, kube, files(f"{folder}-server", servers)) as (
                    server,
                    port,
                ):
                    agent = files(f"{folder}-agent", agents)
                    for concurrency in CONCURRENCIES:
                        say(f"server: {concurrency} callers, certificates: {kind}, {number + 1} of {ROUNDS}")
                        before = server.cpu_seconds()
                        got = call(
                            agent, port, addresses, f"--concurrency={concurrency}", f"--seconds={CALL_SECONDS}", *flags
                        )
                        # The client has called for half a second before it counts, one call after the other.
                        got["cpu_ms"] = (server.cpu_seconds() - before) * 1000 / (got["calls_per_s"] * CALL_SECONDS)
                        figures.setdefault((kind, concurrency), []).append(got)
    return [_row(figures, kind, concurrency) for concurrency in CONCURRENCIES for kind in KINDS]


def _row(figures: dict[tuple[str, int], list[dict[str, Any]]], kind: str, concurrency: int) -> dict[str, Any]:
    # The best round: what else this machine does makes a round worse, and none better.
    rates = {of: max(one["calls_per_s"] for one in figures[of, concurrency]) for of in (kind, "proper")}
    rounds = figures[kind, concurrency]
    return {
        "callers": concurrency,
        "certificates": kind,
        "rate_ratio": round(rates[kind] / rates["proper"], 2),
        "calls_per_s": rates[kind],
        "p50_ms": min(one["p50_ms"] for one in rounds),
        "p99_ms": min(one["p99_ms"] for one in rounds),
        "server_cpu_ms_per_call": round(min(one["cpu_ms"] for one in rounds), 3),
    }
