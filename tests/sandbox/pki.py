"""A throwaway certificate authority with a server's and an agent's certificate, and the ways they can be wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import trustme

from kiam.tls import TLSFiles


@dataclass(frozen=True, slots=True)
class Pki:
    """One authority and what it signed. Further certificates come from :meth:`issue` and the named variants."""

    directory: Path
    ca: Path
    server: TLSFiles
    agent: TLSFiles
    server_names: tuple[str, ...]
    authority: Any = field(repr=False)

    def issue(
        self,
        name: str,
        identities: Sequence[str],
        *,
        not_before: datetime | None = None,
        not_after: datetime | None = None,
    ) -> TLSFiles:
        """Sign a certificate for DNS names and IP addresses and write ``<name>.pem``, ``<name>-key.pem``."""
        leaf = self.authority.issue_cert(
            *identities, common_name=identities[0], not_before=not_before, not_after=not_after
        )
        return _write(self.directory, name, leaf, self.ca)

    def expired(self, name: str = "expired") -> TLSFiles:
        """A certificate with the server's names that expired an hour ago."""
        now = datetime.now(UTC)
        return self.issue(
            name, self.server_names, not_before=now - timedelta(hours=2), not_after=now - timedelta(hours=1)
        )

    def wrong_host(self, name: str = "wrong-host") -> TLSFiles:
        """A good certificate of this authority, for a host that nobody asks for."""
        return self.issue(name, ["elsewhere.invalid"])


def _write(directory: Path, name: str, leaf: Any, ca: Path) -> TLSFiles:
    cert, key = directory / f"{name}.pem", directory / f"{name}-key.pem"
    cert.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    key.touch(mode=0o600)
    key.write_bytes(leaf.private_key_pem.bytes())
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
    authority = trustme.CA(organization_name=f"kiam sandbox {directory.name}")
    ca = directory / "ca.pem"
    ca.write_bytes(authority.cert_pem.bytes())
    issued = {
        name: _write(directory, name, authority.issue_cert(*names, common_name=names[0]), ca)
        for name, names in (("server", tuple(server_names)), ("agent", tuple(agent_names)))
    }
    return Pki(directory, ca, issued["server"], issued["agent"], tuple(server_names), authority)


class SecretVolume:
    """A directory laid out as kubelet mounts a secret: files are symlinks through ``..data``, which is swapped at once.

    Kubernetes source: pkg/volume/util/atomic_writer.go.
    """

    def __init__(self, directory: Path, contents: Mapping[str, bytes]) -> None:
        self.directory = directory
        self._generation = 0
        directory.mkdir(parents=True, exist_ok=True)
        self.swap(contents)
        for name in contents:
            (directory / name).symlink_to(Path("..data") / name)

    @classmethod
    def of(cls, directory: Path, files: TLSFiles) -> SecretVolume:
        """A volume that holds ``tls.crt``, ``tls.key`` and ``ca.crt``."""
        return cls(directory, _secret(files))

    @property
    def files(self) -> TLSFiles:
        """The paths to give to ``--cert``, ``--key`` and ``--ca``."""
        return TLSFiles(self.directory / "tls.crt", self.directory / "tls.key", self.directory / "ca.crt")

    def swap(self, contents: Mapping[str, bytes] | TLSFiles) -> None:
        """Put new contents in place of the old, all files in one step."""
        if isinstance(contents, TLSFiles):
            contents = _secret(contents)
        self._generation += 1
        data = self.directory / f"..generation-{self._generation}"
        data.mkdir()
        for name, blob in contents.items():
            (data / name).write_bytes(blob)
        link = self.directory / "..data"
        old = link.resolve() if link.is_symlink() else None
        fresh = self.directory / "..data_tmp"
        fresh.symlink_to(data.name)
        fresh.replace(link)
        if old is not None:
            for path in old.iterdir():
                path.unlink()
            old.rmdir()


def _secret(files: TLSFiles) -> dict[str, bytes]:
    return {
        "tls.crt": files.cert.read_bytes(),
        "tls.key": files.key.read_bytes(),
        "ca.crt": files.ca.read_bytes(),
    }


def bundle(path: Path, *authorities: Path) -> Path:
    """Write several CA files into one, as for a CA rotation with an overlap."""
    path.write_bytes(b"".join(authority.read_bytes() for authority in authorities))
    return path
