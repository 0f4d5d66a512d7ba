"""The process that inspects certificates for an agent finds what the library in one's own process finds."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from kiam.errors import ErrorKind, UserError
from kiam.tls import diagnosis, helper
from kiam.tls.helper import load_in_helper
from kiam.tls.inspection import load_summary
from kiam.tls.reload import TLSReloader
from kiam.tls.summary import Side
from tests.sandbox.certificates import Authority, days, write
from tests.unit.tls.test_diagnosis import serving

AUTHORITY = Authority.make()
OTHER = Authority.make()
GOOD = AUTHORITY.sign("agent")
NOW = datetime.now(UTC)


@pytest.mark.parametrize("authority", [AUTHORITY.pem, OTHER.pem], ids=["whole", "with a warning"])
def test_the_same_is_found_as_in_this_process(tmp_path: Path, authority: bytes) -> None:
    files = write(tmp_path, GOOD, authority)
    assert load_in_helper(files, Side.CLIENT, NOW) == load_summary(files, Side.CLIENT, NOW)


@pytest.mark.parametrize("broken", ["expired", "not PEM", "another's key"])
def test_the_same_is_refused_as_in_this_process(tmp_path: Path, broken: str) -> None:
    issued = AUTHORITY.sign("agent", period=days(-9, -1)) if broken == "expired" else GOOD
    files = write(tmp_path, issued, AUTHORITY.pem)
    if broken == "not PEM":
        files.cert.write_bytes(b"\xff\x00 nothing")
    if broken == "another's key":
        files.key.write_bytes(AUTHORITY.sign("other").key)
    with pytest.raises(UserError) as here:
        load_summary(files, Side.CLIENT, NOW)
    with pytest.raises(UserError) as there:
        load_in_helper(files, Side.CLIENT, NOW)
    assert (there.value.what, there.value.fix, there.value.kind) == (here.value.what, here.value.fix, here.value.kind)


@pytest.mark.parametrize(
    "program",
    ["raise SystemExit(3)", "print('{')", "print('{}')", "print('[]')", "print('{\"summary\": {}}')", ""],
)
def test_a_helper_that_fails_leaves_the_old_material_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, program: str
) -> None:
    reloader = TLSReloader(write(tmp_path, GOOD, AUTHORITY.pem), Side.CLIENT, load_in_helper)
    monkeypatch.setattr(helper, "_ARGV", (sys.executable, "-c", program))
    write(tmp_path, AUTHORITY.sign("newer"), AUTHORITY.pem)
    assert not reloader.refresh()
    assert reloader.material.cert == GOOD.cert
    assert "the process that inspects the certificates failed" in caplog.text
    with pytest.raises(UserError) as refused:
        TLSReloader(write(tmp_path, GOOD, AUTHORITY.pem), Side.CLIENT, load_in_helper)
    assert refused.value.kind is ErrorKind.OTHER


@pytest.mark.parametrize("shown", ["good", "another authority's", "for any usage"])
def test_the_same_is_said_of_a_server_as_in_this_process(tmp_path: Path, shown: str) -> None:
    issued = {
        "good": AUTHORITY.sign("kiam-server"),
        "another authority's": OTHER.sign("kiam-server"),
        "for any usage": AUTHORITY.sign_for_usages([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]),
    }[shown]
    files = write(tmp_path, GOOD, AUTHORITY.pem)
    with serving(issued, AUTHORITY.pem) as port:
        address = f"localhost:{port}"
        here, there = diagnosis.explain_failure(address, files), helper.explain_failure(address, files)
        assert helper.needs_lenient_tls(address, files) is (shown == "for any usage")
    assert (here is None) is (shown != "another authority's")
    assert (there and (there.what, there.fix, there.kind)) == (here and (here.what, here.fix, here.kind))


@pytest.mark.parametrize("program", ["raise SystemExit(3)", "print('{')", "print('{}')", "print('[]')"])
def test_a_helper_that_fails_is_said_and_changes_nothing(
    tmp_path: Path, program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = write(tmp_path, GOOD, AUTHORITY.pem)
    monkeypatch.setattr(helper, "_ARGV", (sys.executable, "-c", program))
    assert "the process that inspects the certificates failed" in str(helper.explain_failure("localhost:1", files))
    assert not helper.needs_lenient_tls("localhost:1", files)


def test_an_agent_holds_no_library_for_certificates() -> None:
    program = "import sys, kiam.cli.agent, kiam.agent.run, kiam.tls.helper; print('cryptography' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
