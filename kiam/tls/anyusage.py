"""TLS that takes certificates whose extended key usage is ``any``, as Go does and gRPC's own library doesn't.

RFC 5280, 4.2.1.12: a certificate with anyExtendedKeyUsage may be used for every purpose. Conventional kiam's
cert-manager example asks for such certificates (``usages: ["any"]``), for the authority too. BoringSSL, inside gRPC,
refuses them, and so does OpenSSL, but OpenSSL asks a callback about each of its complaints. Everything but the one
complaint about such a certificate's purpose stands: chain, signatures, dates, constraints and key usage are OpenSSL's
own verification, and the server's name is compared after the handshake.
"""

from __future__ import annotations

from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL, crypto

from kiam.tls import TLSMaterial
from kiam.tls.certificates import Certificate, describe, split_pem
from kiam.tls.summary import Side

HTTP2 = b"h2"
"""The application protocol gRPC requires (RFC 9113, 3.2)."""

_CIPHERS = b"DEFAULT:@SECLEVEL=1"
"""SSL_CTX_set_security_level(3): level 1 takes RSA keys from 1,024 bits on, as Go and gRPC's own library do; OpenSSL's
default refuses certificates that work with conventional kiam."""
_UNSUITABLE_PURPOSE = 26
"""X509_V_ERR_INVALID_PURPOSE, "unsuitable certificate purpose" (openssl/x509_vfy.h.in)."""
_NETSCAPE_TYPE = x509.ObjectIdentifier("2.16.840.1.113730.1.1")
"""nsCertType, which OpenSSL's purpose check goes by as well."""


def may_serve_any_purpose(certificate: x509.Certificate, peer: Side, depth: int) -> bool:
    """Whether OpenSSL's complaint about a certificate's purpose is about its usage being ``any``, and nothing else.

    The complaint covers key usage and nsCertType too (OpenSSL, crypto/x509/v3_purp.c, check_purpose_ssl_client,
    check_purpose_ssl_server, check_ssl_ca), so these are looked at here. ``depth`` is 0 for the peer's own certificate
    and more for those above it.

    Which attack: a certificate that the authority gave out for signing mail or as a server's must not become an
    agent's.
    """
    extensions = {extension.oid: extension.value for extension in certificate.extensions}
    usages = extensions.get(x509.ExtendedKeyUsage.oid)
    if not isinstance(usages, x509.ExtendedKeyUsage) or ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE not in usages:
        return False
    if _NETSCAPE_TYPE in extensions:
        return False
    key = extensions.get(x509.KeyUsage.oid)
    if depth:
        constraints = extensions.get(x509.BasicConstraints.oid)
        is_authority = isinstance(constraints, x509.BasicConstraints) and constraints.ca
        return is_authority and (not isinstance(key, x509.KeyUsage) or key.key_cert_sign)
    if not isinstance(key, x509.KeyUsage):
        return True
    return key.digital_signature or key.key_agreement or (peer is Side.SERVER and key.key_encipherment)


def make_context(material: TLSMaterial, peer: Side) -> SSL.Context:
    """A context that demands a certificate of the other side, which is ``peer``, and verifies it.

    The material must have been inspected. No sessions are kept: a resumed one wouldn't be verified anew after the
    authority was replaced. Raises SSL.Error for what OpenSSL won't use.
    """
    context = SSL.Context(SSL.TLS_SERVER_METHOD if peer is Side.CLIENT else SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(_CIPHERS)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_COMPRESSION)
    own, *intermediates = split_pem(material.cert)
    context.use_certificate(own)
    for intermediate in intermediates:
        context.add_extra_chain_cert(intermediate)
    key: Any = load_pem_private_key(material.key, password=None)
    context.use_privatekey(key)
    store = context.get_cert_store()
    assert store is not None
    for authority in split_pem(material.ca):
        store.add_cert(crypto.X509.from_cryptography(authority))
    # As Go: what is in --ca is trusted as it is, an intermediate authority too.
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)

    def verify(_: SSL.Connection, certificate: crypto.X509, error: int, depth: int, good: int) -> bool:
        if good:
            return True
        return error == _UNSUITABLE_PURPOSE and may_serve_any_purpose(certificate.to_cryptography(), peer, depth)

    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, verify)
    if peer is Side.CLIENT:
        context.set_alpn_select_callback(_select_http2)
    else:
        context.set_alpn_protos([HTTP2])
    return context


def peer_certificate(connection: SSL.Connection) -> Certificate:
    """The other side's certificate, after a handshake, which has verified it."""
    shown = connection.get_peer_certificate(as_cryptography=True)
    assert shown is not None, "a handshake without a certificate doesn't succeed"
    return describe(shown)


def _select_http2(_: SSL.Connection, offered: list[bytes]) -> Any:
    return HTTP2 if HTTP2 in offered else SSL.NO_OVERLAPPING_PROTOCOLS
