"""The certificates the chart makes work: both halves accept each other by every name they use."""

from __future__ import annotations

import base64
import ssl
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.deploy.chart import Manifest, Values, at, find, manifests, merged


def secrets(*values: Values, **release: str) -> dict[str, dict[str, bytes]]:
    return {
        manifest["metadata"]["name"].rpartition("-")[2]: {
            name: base64.b64decode(text) for name, text in manifest["data"].items()
        }
        for manifest in manifests(*values, **release)
        if manifest["kind"] == "Secret" and not manifest["metadata"]["name"].endswith("-next-certificates")
    }


def context(purpose: ssl.Purpose, files: dict[str, bytes], folder: Path) -> ssl.SSLContext:
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_bytes(text)
    made = ssl.create_default_context(purpose, cafile=str(folder / "ca"))
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_cert_chain(folder / "cert", folder / "key")
    return made


def shake_hands(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> None:
    """A whole TLS handshake, both sides verifying. Raises ssl.SSLError if either refuses."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(3):  # a handshake takes one and a half round trips
        for end in list(ends):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            ends.remove(end)
    assert ends == []


@pytest.mark.parametrize(
    ("release", "names"),
    [
        ("kiam", ["kiam-server", "kiam-server.kube-system", "kiam-server.kube-system.svc", "127.0.0.1", "localhost"]),
        ("my-release", ["my-release-kiam-server", "my-release-kiam-server.kube-system.svc.cluster.local"]),
    ],
)
def test_both_halves_accept_each_other_by_every_name(release: str, names: list[str], tmp_path: Path) -> None:
    made = secrets(release=release)
    agent = context(ssl.Purpose.SERVER_AUTH, made["agent"], tmp_path / "agent")
    server = context(ssl.Purpose.CLIENT_AUTH, made["server"], tmp_path / "server")
    # The server's probes are clients with the server's own certificate.
    probe = context(ssl.Purpose.SERVER_AUTH, made["server"], tmp_path / "probe")
    for name in names:
        shake_hands(agent, server, name)
        shake_hands(probe, server, name)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(agent, server, "other-server")


def test_certificates_of_another_rendering_are_refused(tmp_path: Path) -> None:
    agent = context(ssl.Purpose.SERVER_AUTH, secrets()["agent"], tmp_path / "agent")
    server = context(ssl.Purpose.CLIENT_AUTH, secrets()["server"], tmp_path / "server")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(agent, server, "kiam-server")


@pytest.mark.parametrize("address", ["10.1.2.3", "kiam.example.test", "[::1]"])
def test_the_address_the_probes_hit_is_in_the_certificate(address: str, tmp_path: Path) -> None:
    made = secrets(at("server.probes.serverAddress", address))
    server = context(ssl.Purpose.CLIENT_AUTH, made["server"], tmp_path / "server")
    probe = context(ssl.Purpose.SERVER_AUTH, made["server"], tmp_path / "probe")
    shake_hands(probe, server, address.strip("[]"))


def test_validity_is_as_asked() -> None:
    for days in (3650, 30):
        made = secrets(at("selfSigned.validityDays", days))
        for half in ("agent", "server"):
            for name in ("ca", "cert"):
                certificate = x509.load_pem_x509_certificate(made[half][name])
                assert certificate.not_valid_after_utc - certificate.not_valid_before_utc == timedelta(days=days)


def test_the_authoritys_key_is_stored_nowhere() -> None:
    """Whoever has it can make an agent's certificate for any node."""
    for half, files in secrets().items():
        assert files.keys() == {"ca", "cert", "key"}, half
        certificate = x509.load_pem_x509_certificate(files["cert"])
        for authority in x509.load_pem_x509_certificates(files["ca"]):
            assert authority.public_key() != certificate.public_key()
        assert files["key"].count(b"BEGIN") == 1
    following = find(manifests(), "Secret/kiam-next-certificates")["data"]
    assert following.keys() == {"ca", "agent-cert", "agent-key", "server-cert", "server-key"}
    authority = x509.load_pem_x509_certificate(base64.b64decode(following["ca"]))
    for half in ("agent", "server"):
        key = load_pem_private_key(base64.b64decode(following[f"{half}-key"]), None)
        assert key.public_key() != authority.public_key()


def test_file_names_are_followed() -> None:
    names = {"certFileName": "tls.crt", "keyFileName": "tls.key", "caFileName": "ca.crt"}
    made = secrets(at("agent.tlsCerts", names))
    assert made["agent"].keys() == {"tls.crt", "tls.key", "ca.crt"}
    assert made["server"].keys() == {"cert", "key", "ca"}


def test_nothing_is_made_for_a_half_that_has_a_certificate() -> None:
    assert secrets(at("agent.tlsSecret", "mine")).keys() == {"server"}
    assert secrets(at("agent.tlsSecret", "mine"), at("server.tlsSecret", "mine")) == {}
    assert secrets(at("certManager.enabled", True)) == {}
    assert secrets(at("agent.tlsHostPath", "/etc/kiam/tls")).keys() == {"server"}


def certificate(half: str) -> Manifest:
    spec: Manifest = find(manifests(at("certManager.enabled", True)), f"Certificate/kiam-{half}")["spec"]
    return spec


def test_cert_managers_certificates_have_the_names_and_usages() -> None:
    assert {"kiam-server", "localhost"} <= set(certificate("server")["dnsNames"])
    assert certificate("server")["ipAddresses"] == ["127.0.0.1"]
    assert {"server auth", "client auth"} <= set(certificate("server")["usages"])
    assert "server auth" not in certificate("agent")["usages"]


def test_cert_managers_secrets_are_the_ones_mounted_under_the_flags_names() -> None:
    objects = manifests(at("certManager.enabled", True), at("agent.tlsCerts.certFileName", "agent.pem"))
    for half, cert in (("agent", "agent.pem"), ("server", "cert")):
        pod = find(objects, f"DaemonSet/kiam-{half}")["spec"]["template"]["spec"]
        volume = pod["volumes"][0]["secret"]
        assert volume["secretName"] == find(objects, f"Certificate/kiam-{half}")["spec"]["secretName"]
        assert {"key": "tls.crt", "path": cert} in volume["items"]
        assert f"--cert=/etc/kiam/tls/{cert}" in pod["containers"][0]["args"]


def test_made_certificates_say_what_they_are_for() -> None:
    made = secrets()
    usages = {
        half: set(
            x509.load_pem_x509_certificate(made[half]["cert"])
            .extensions.get_extension_for_class(x509.ExtendedKeyUsage)
            .value
        )
        for half in made
    }
    assert ExtendedKeyUsageOID.CLIENT_AUTH in usages["agent"]
    assert {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH} <= usages["server"]


def test_given_files_go_into_the_secret_as_they_are() -> None:
    files = {"ca": "Y2E=\n", "cert": "Y2VydA==", "key": "a2V5"}
    made = secrets(merged(at("agent.tlsFiles", files), at("server.tlsFiles", files)))
    assert made == {half: {"ca": b"ca", "cert": b"cert", "key": b"key"} for half in ("agent", "server")}
