"""Certificates of a throwaway authority, and folders like mounted secrets."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from itertools import count
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kiam.tls import TLSFiles
from kiam.tls.issue import Issued, Period, make_authority, make_certificate

FILE_NAMES = ("cert.pem", "key.pem", "ca.pem")
_signed = count()


@dataclass(frozen=True, slots=True)
class Authority:
    """An authority that signs what a test asks for."""

    issued: Issued

    @classmethod
    def make(cls, name: str = "test authority", period: Period | None = None) -> Authority:
        """A new one."""
        return cls(make_authority(name, period or days(0, 365)))

    def as_of(self, period: Period) -> Authority:
        """The same authority, name and key, with a certificate of another time."""
        old = x509.load_pem_x509_certificate(self.issued.cert)
        key = load_pem_private_key(self.issued.key, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        builder = x509.CertificateBuilder(
            old.issuer, old.subject, key.public_key(), x509.random_serial_number(), period.not_before, period.not_after
        ).add_extension(x509.BasicConstraints(True, None), critical=True)
        certificate = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
        return Authority(Issued(certificate, self.issued.key, period.not_after))

    @classmethod
    def for_any_usage(cls, name: str = "my-ca") -> Authority:
        """As cert-manager makes one of ``isCA: true`` and ``usages: ["any"]``: key usage cert sign, and 'any'."""
        key, period = ec.generate_private_key(ec.SECP256R1()), days(0, 365)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        public, serial = key.public_key(), x509.random_serial_number()
        builder = x509.CertificateBuilder(subject, subject, public, serial, period.not_before, period.not_after)
        for extension, critical in (
            (x509.BasicConstraints(True, None), True),
            (key_usage(key_cert_sign=True), True),
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]), False),
            (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
        ):
            builder = builder.add_extension(extension, critical)
        certificate = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return cls(Issued(certificate, private, period.not_after))

    def sign_for_usages(
        self,
        usages: Sequence[x509.ObjectIdentifier],
        names: Sequence[str] = ("localhost",),
        *,
        addresses: Sequence[str] = (),
        period: Period | None = None,
        key_usage: x509.KeyUsage | None = None,
        key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None,
    ) -> Issued:
        """A certificate with just these extended key usages; none: no such extension."""
        issuer = x509.load_pem_x509_certificate(self.issued.cert)
        signing_key = load_pem_private_key(self.issued.key, None)
        assert isinstance(signing_key, ec.EllipticCurvePrivateKey)
        key, period = key or ec.generate_private_key(ec.SECP256R1()), period or _own_period()
        builder = x509.CertificateBuilder(
            issuer.subject,
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kiam-server")]),
            key.public_key(),
            x509.random_serial_number(),
            period.not_before,
            period.not_after,
        )
        if usages:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        if key_usage is not None:
            builder = builder.add_extension(key_usage, critical=True)
        alternatives: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
        alternatives += [x509.IPAddress(ip_address(address)) for address in addresses]
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), False)
        return Issued(
            builder.sign(signing_key, hashes.SHA256()).public_bytes(Encoding.PEM),
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            period.not_after,
        )

    @property
    def pem(self) -> bytes:
        return self.issued.cert

    def sign(self, name: str, names: Sequence[str] = ("localhost",), period: Period | None = None) -> Issued:
        return make_certificate(name, names, period or _own_period(), self.issued.cert, self.issued.key)


def _own_period() -> Period:
    """90 days, less a minute for each certificate before it: a test that knows one by its expiry knows it alone."""
    whole = days(0, 90)
    return Period(whole.not_before, whole.not_after - timedelta(minutes=next(_signed)))


def key_usage(**given: bool) -> x509.KeyUsage:
    """A key usage extension with these bits."""
    names = (
        *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
        *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    )
    return x509.KeyUsage(**{name: given.get(name, False) for name in names})


def days(start: float, end: float) -> Period:
    """A period counted in days from now."""
    now = datetime.now(UTC).replace(microsecond=0)
    return Period(now + timedelta(days=start, minutes=-5), now + timedelta(days=end))


class MountedSecret:
    """A folder that Kubernetes' kubelet would have made of a Secret: its files are links through ``..data``."""

    def __init__(self, directory: Path, cert: bytes, key: bytes, ca: bytes) -> None:
        """Make the folder."""
        self.directory = directory
        self._version = 0
        directory.mkdir(parents=True, exist_ok=True)
        self.swap(cert, key, ca)
        for name in FILE_NAMES:
            (directory / name).symlink_to(Path("..data") / name)
        self.files = TLSFiles(*(directory / name for name in FILE_NAMES))

    @classmethod
    def of(cls, directory: Path, files: TLSFiles) -> MountedSecret:
        """One with what is in other files."""
        return cls(directory, *_contents(files))

    def swap_for(self, files: TLSFiles) -> None:
        """Replace all files at one moment by what is in other files."""
        self.swap(*_contents(files))

    def swap(self, cert: bytes, key: bytes, ca: bytes) -> None:
        """Replace all files at one moment, as kubelet's AtomicWriter does."""
        self._version += 1
        version = self.directory / f"..2026_{self._version}"
        version.mkdir()
        for name, content in zip(FILE_NAMES, (cert, key, ca), strict=True):
            (version / name).write_bytes(content)
        link = self.directory / "..data_tmp"
        link.symlink_to(version.name)
        os.replace(link, self.directory / "..data")  # noqa: PTH105  # rename(2) itself is what kubelet does


def _contents(files: TLSFiles) -> tuple[bytes, bytes, bytes]:
    return files.cert.read_bytes(), files.key.read_bytes(), files.ca.read_bytes()


def write(directory: Path, issued: Issued, ca: bytes) -> TLSFiles:
    """Plain files."""
    directory.mkdir(parents=True, exist_ok=True)
    files = TLSFiles(*(directory / name for name in FILE_NAMES))
    files.cert.write_bytes(issued.cert)
    files.key.write_bytes(issued.key)
    files.ca.write_bytes(ca)
    return files


@contextmanager
def grpc_server(certificate: Issued, client_ca: bytes) -> Iterator[int]:
    """A gRPC server of the C core with this certificate, on a loopback port; it knows no method."""
    server = grpc.server(ThreadPoolExecutor(1))
    credentials = grpc.ssl_server_credentials(
        [(certificate.key, certificate.cert)], client_ca, require_client_auth=True
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()
