"""Why a TLS connection to the server fails: which certificate is wrong, and until when it was right.

gRPC says little more than "failed to connect to all addresses". A plain handshake shows the server's certificate, also
one that isn't trusted, and whether the server accepts ours. No request is sent.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from cryptography import x509

from kiam.errors import ErrorKind, UserError, joined
from kiam.tls import TLSFiles, TLSMaterial, split_address
from kiam.tls.certificates import Certificate, describe
from kiam.tls.inspection import InspectedTLS, inspect
from kiam.tls.refusals import Refusals, VerifyCode, wrong
from kiam.tls.summary import Side

T = TypeVar("T")

_HTTP2 = ["h2"]
"""The application protocol gRPC servers require (RFC 9113, 3.2)."""

_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
"""HTTP/2's client preface and an empty SETTINGS frame (RFC 9113, 3.4): a server that accepted us answers with its own.

In TLS 1.3 a client is done before the server has looked at its certificate; only the answer shows the server's mind.
"""

_SPEAKS_FIRST = 0.5
"""Seconds a server gets to greet us before we greet it."""


@dataclass(frozen=True, slots=True)
class Handshake:
    """What came of one handshake with one address of the server."""

    endpoint: str
    problem: UserError | None = None
    """None: both sides accepted each other."""
    certificate: Certificate | None = None
    """The server's, when it showed one."""
    protocol: str = ""
    """Such as TLSv1.3."""
    lenient: bool = False
    """Whether it came about only because a certificate for 'any' usage was taken, which gRPC's own TLS refuses."""

    @property
    def connected(self) -> bool:
        """False: not even a TCP connection came about."""
        return self.problem is None or self.problem.kind is not ErrorKind.UNREACHABLE


def diagnose(address: str, files: TLSFiles, timeout: float = 2.0) -> Sequence[Handshake]:
    """Try a handshake with every address that a ``--server-address`` stands for. Blocks up to the timeout for each.

    Raises UserError when our own files are unusable, the address isn't HOST:PORT or its host can't be resolved.
    """
    host, port = split_address(address)
    material = files.read()
    own = inspect(files, material, Side.CLIENT)
    if own.errors:
        raise joined([problem.as_error() for problem in own.errors])
    try:
        resolved = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UserError(
            f"--server-address: '{host}' can't be resolved: {error.strerror}",
            "give the name of the server's Service",
            ErrorKind.UNREACHABLE,
        ) from error
    endpoints = dict.fromkeys((family, sockaddr) for family, _, _, _, sockaddr in resolved)
    return [_Client(files, material, own, host, timeout).handshake(family, sockaddr) for family, sockaddr in endpoints]


def explain_failure(address: str, files: TLSFiles, timeout: float = 2.0) -> UserError | None:
    """Why the server at an address can't be talked to; None if a handshake succeeds now.

    Where some of the server's addresses can be connected to, what is wrong with those is said, not the others' silence.
    Blocks: call it off the event loop, and only after a connection failed.
    """
    try:
        handshakes = diagnose(address, files, timeout)
    except UserError as error:
        return error
    telling = [found for found in handshakes if found.connected] or handshakes
    problems = {str(found.problem): found.problem for found in telling if found.problem is not None}
    # One address that works is enough.
    return joined(list(problems.values())) if all(found.problem for found in telling) else None


def needs_lenient_tls(address: str, files: TLSFiles, timeout: float = 2.0) -> bool:
    """Whether a server can be talked to, but not by gRPC's own TLS: its certificate is for 'any' usage. Blocks."""
    try:
        return any(found.lenient and found.problem is None for found in diagnose(address, files, timeout))
    except UserError:
        return False


class _Client:
    """Makes handshakes as the agent would, and looks at what went wrong."""

    def __init__(self, files: TLSFiles, material: TLSMaterial, own: InspectedTLS, host: str, timeout: float) -> None:
        self._files = files
        self._material = material
        self._refusals = Refusals(files, own, host)
        self._host = host
        self._timeout = timeout

    def handshake(self, family: int, sockaddr: tuple[Any, ...]) -> Handshake:
        endpoint = f"{sockaddr[0]}:{sockaddr[1]}" if family == socket.AF_INET else f"[{sockaddr[0]}]:{sockaddr[1]}"
        server = f"server '{self._host}' at {endpoint}"
        try:
            return self._verified(family, sockaddr, endpoint, server)
        except ssl.SSLCertVerificationError as error:
            if error.verify_code == VerifyCode.INVALID_PURPOSE and (
                found := self._lenient(family, sockaddr, endpoint, server)
            ):
                return found
            return self._untrusted(family, sockaddr, endpoint, server, error)
        except ssl.SSLZeroReturnError:
            return Handshake(endpoint, self._refusals.closed(server))
        except ssl.SSLError as error:
            return Handshake(endpoint, self._refusals.broken_off(error, server))
        except TimeoutError:
            return Handshake(endpoint, _unreachable(f"{server} doesn't answer within {self._timeout:g} s"))
        except OSError as error:
            return Handshake(endpoint, _unreachable(f"{server} can't be connected to: {error.strerror or error}"))

    def _verified(self, family: int, sockaddr: tuple[Any, ...], endpoint: str, server: str) -> Handshake:
        """A handshake as the agent makes it. Raises what the ssl module raises."""
        context = self._context()
        context.load_verify_locations(cadata=self._material.ca.decode("ascii", "replace"))
        with self._connect(family, sockaddr, context) as connection:
            certificate = _shown(connection)
            try:
                answered = self._is_greeted(connection)
            except ConnectionError:
                answered = False
            problem = None if answered else self._refusals.closed(server)
            return Handshake(endpoint, problem, certificate=certificate, protocol=connection.version() or "")

    def _lenient(self, family: int, sockaddr: tuple[Any, ...], endpoint: str, server: str) -> Handshake | None:
        """A handshake that takes certificates for 'any' usage; None: not even that succeeds."""
        # Costs 50 ms to load, and few need it.
        from OpenSSL import SSL

        from kiam.tls.anyusage import make_context, peer_certificate
        from kiam.tls.relay import endpoint as tls_endpoint

        connection = tls_endpoint(make_context(self._material, Side.SERVER), server=False, host=self._host)
        try:
            with socket.socket(family, socket.SOCK_STREAM) as sock:
                sock.settimeout(self._timeout)
                sock.connect(sockaddr)
                _pump(sock, connection, connection.do_handshake)
                certificate = peer_certificate(connection)
                if not certificate.covers(self._host):
                    return None
                try:
                    answered = bool(_pump(sock, connection, lambda: connection.recv(1)))
                except (SSL.Error, OSError):
                    answered = False
                problem = None if answered else self._refusals.closed(server)
                protocol = connection.get_protocol_version_name()
                return Handshake(endpoint, problem, certificate, protocol, lenient=True)
        except (SSL.Error, OSError):
            return None

    def _is_greeted(self, connection: ssl.SSLSocket) -> bool:
        """Whether the server, which has now seen our certificate, goes on talking. Raises ssl.SSLError if it says why.

        gRPC servers speak first. Listening before we say anything matters: to data it hasn't read a closing server
        answers with a reset, and that makes the kernel drop the alert with the reason.
        """
        connection.settimeout(min(_SPEAKS_FIRST, self._timeout))
        try:
            return bool(connection.recv(1))
        except TimeoutError:
            connection.settimeout(self._timeout)
            connection.sendall(_GREETING)
            return bool(connection.recv(1))

    def _untrusted(
        self,
        family: int,
        sockaddr: tuple[Any, ...],
        endpoint: str,
        server: str,
        refusal: ssl.SSLCertVerificationError,
    ) -> Handshake:
        """Have the certificate that was refused shown again, this time to say what is wrong with it."""
        context = self._context()
        # Only to look at the certificate: nothing is sent or believed over this connection.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        try:
            with self._connect(family, sockaddr, context) as connection:
                certificate = _shown(connection)
        except OSError:
            certificate = None
        if certificate is None:
            what = f"{server} shows a certificate that is refused: {refusal.verify_message}"
            return Handshake(endpoint, wrong(what))
        return Handshake(endpoint, self._refusals.untrusted(certificate, server, refusal), certificate=certificate)

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # As Go and RFC 9525, 6.3: a common name is no host name.
        context.hostname_checks_common_name = False
        context.set_alpn_protocols(_HTTP2)
        context.load_cert_chain(self._files.cert, self._files.key)
        return context

    def _connect(self, family: int, sockaddr: tuple[Any, ...], context: ssl.SSLContext) -> ssl.SSLSocket:
        connection = socket.socket(family, socket.SOCK_STREAM)
        try:
            connection.settimeout(self._timeout)
            connection.connect(sockaddr)
            return context.wrap_socket(connection, server_hostname=self._host)
        except BaseException:
            connection.close()
            raise


def _pump(sock: socket.socket, connection: Any, step: Callable[[], T]) -> T:
    """Take a step of TLS, with what it needs from the network. Raises SSL.Error and OSError."""
    from OpenSSL import SSL

    while True:
        try:
            result, finished = step(), True
        except SSL.WantReadError:
            finished = False
        with contextlib.suppress(SSL.WantReadError):
            while out := connection.bio_read(65536):
                sock.sendall(out)
        if finished:
            return result
        data = sock.recv(65536)
        if not data:
            raise ConnectionError("closed")
        connection.bio_write(data)


def _unreachable(what: str) -> UserError:
    return UserError(what, kind=ErrorKind.UNREACHABLE)


def _shown(connection: ssl.SSLSocket) -> Certificate | None:
    der = connection.getpeercert(binary_form=True)
    return describe(x509.load_der_x509_certificate(der)) if der else None
