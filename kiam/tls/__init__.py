"""The certificate, key and CA files of mutual TLS.

Kept light, because ``kiam health`` imports it every few seconds: looking into certificates (``kiam.tls.certificates``),
following their rotation (``kiam.tls.reload``) and finding out why a handshake fails (``kiam.tls.diagnosis``) are
modules of their own, imported when they are needed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from kiam.errors import UserError

Fingerprint = tuple[tuple[str, int, int, int], ...]

_READ_ATTEMPTS = 10


@dataclass(frozen=True, slots=True)
class TLSFiles:
    """Paths of PEM files, as ``--cert``, ``--key`` and ``--ca`` name them."""

    cert: Path
    key: Path
    ca: Path

    def read(self) -> TLSMaterial:
        """Read the three files as they are at one moment. Nothing is checked but that they can be read.

        Kubernetes swaps all files of a mounted secret at once by re-pointing its ``..data`` symlink. A read that falls
        into the swap could pair the old certificate with the new key, so the files are read again when their
        fingerprint changed meanwhile.

        Raises UserError that names the flag, the path and what is wrong with it.
        """
        for _ in range(_READ_ATTEMPTS):
            before = self._fingerprint_or_none()
            material = TLSMaterial(cert=_read("cert", self.cert), key=_read("key", self.key), ca=_read("ca", self.ca))
            if before is not None and before == self._fingerprint_or_none():
                return material
        raise UserError(f"--cert, --key, --ca: {self.cert} and its companions change faster than they can be read")

    def fingerprint(self) -> Fingerprint:
        """Changes whenever a file's content may have: resolved path, inode, modification time in ns, size of each.

        Raises OSError while a file is away.
        """
        seen = []
        for path in (self.cert, self.key, self.ca):
            real = path.resolve(strict=True)
            status = real.stat()
            seen.append((str(real), status.st_ino, status.st_mtime_ns, status.st_size))
        return tuple(seen)

    def _fingerprint_or_none(self) -> Fingerprint | None:
        try:
            return self.fingerprint()
        except OSError:
            return None


@dataclass(frozen=True, slots=True)
class TLSMaterial:
    """PEM contents of the three files, read together."""

    cert: bytes
    key: bytes = field(repr=False)
    ca: bytes


def _read(flag: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"--{flag}: {path}: {error.strerror}", "give the path of a PEM file") from error


def split_address(address: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT`` or ``[IPV6]:PORT``. Raises UserError that names the flag."""
    host, _, port = address.removeprefix("dns:///").rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"--server-address: '{address}' is not HOST:PORT, such as kiam-server:443")
    return host, int(port)
