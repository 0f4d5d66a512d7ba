"""The certificate, key and CA files of mutual TLS, re-read when they change.

Kubernetes swaps a mounted secret by re-pointing its ``..data`` symlink, so the files' identity is what their paths
resolve to at the moment of looking.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from kiam.errors import UserError


@dataclass(frozen=True, slots=True)
class TLSFiles:
    """Paths of PEM files, as ``--cert``, ``--key`` and ``--ca`` name them."""

    cert: Path
    key: Path
    ca: Path

    def read(self) -> TLSMaterial:
        """Read the three files. Raises UserError that names the flag, the path and what is wrong with it."""
        contents = {}
        for flag in ("cert", "key", "ca"):
            path: Path = getattr(self, flag)
            try:
                contents[flag] = path.read_bytes()
            except OSError as error:
                raise UserError(f"--{flag}: {path}: {error.strerror}; give the path of a PEM file") from error
        return TLSMaterial(**contents)

    def fingerprint(self) -> tuple[tuple[str, int, int], ...]:
        """Changes whenever a file's content may have: resolved path, modification time in ns and inode of each.

        Raises OSError while a file is away.
        """
        seen = []
        for path in (self.cert, self.key, self.ca):
            real = path.resolve()
            status = real.stat()
            seen.append((str(real), status.st_mtime_ns, status.st_ino))
        return tuple(seen)


@dataclass(frozen=True, slots=True)
class TLSMaterial:
    """PEM contents of the three files, read together."""

    cert: bytes
    key: bytes = field(repr=False)
    ca: bytes
