"""A throwaway authority with a server's and an agent's certificate, and the ways they can be wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from kiam.tls import TLSFiles
from kiam.tls.issue import Issued, Period
from tests.sandbox.certificates import Authority

LONG = Period(datetime(2000, 1, 1, tzinfo=UTC), datetime(3000, 1, 1, tzinfo=UTC))
"""Whatever the clock says, and wherever a test sets it."""


@dataclass(frozen=True, slots=True)
class Pki:
    """One authority and what it signed. Further certificates come from :meth:`issue` and the named variants."""

    directory: Path
    ca: Path
    server: TLSFiles
    agent: TLSFiles
    server_names: tuple[str, ...]
    authority: Authority = field(repr=False)

    def issue(self, name: str, identities: Sequence[str], period: Period = LONG) -> TLSFiles:
        """Sign a certificate for DNS names and IP addresses and write ``<name>.pem``, ``<name>-key.pem``."""
        return _write(self.directory, name, self.authority.sign(identities[0], identities, period), self.ca)

    def expired(self, name: str = "expired") -> TLSFiles:
        """A certificate with the server's names that expired an hour ago."""
        now = datetime.now(UTC)
        return self.issue(name, self.server_names, Period(now - timedelta(hours=2), now - timedelta(hours=1)))

    def wrong_host(self, name: str = "wrong-host") -> TLSFiles:
        """A good certificate of this authority, for a host that nobody asks for."""
        return self.issue(name, ["elsewhere.invalid"])


def _write(directory: Path, name: str, issued: Issued, ca: Path) -> TLSFiles:
    cert, key = directory / f"{name}.pem", directory / f"{name}-key.pem"
    cert.write_bytes(issued.cert)
    key.touch(mode=0o600)
    key.write_bytes(issued.key)
    return TLSFiles(cert, key, ca)


def make_pki(
    directory: Path,
    server_names: Sequence[str] = ("localhost", "127.0.0.1"),
    agent_names: Sequence[str] = ("agent",),
) -> Pki:
    """Make an authority, ``server.pem`` and ``agent.pem`` in a directory, which is created if need be.

    Another authority ("other CA") is another call with another directory.
    """
    directory.mkdir(parents=True, exist_ok=True)
    authority = Authority.make(f"kiam sandbox {directory.name}", LONG)
    ca = directory / "ca.pem"
    ca.write_bytes(authority.pem)
    server, agent = (
        _write(directory, name, authority.sign(names[0], names, LONG), ca)
        for name, names in (("server", server_names), ("agent", agent_names))
    )
    return Pki(directory, ca, server, agent, tuple(server_names), authority)
