from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kiam.cli import main
from kiam.tls import TLSFiles
from kiam.tls.certificates import read_certificates
from kiam.tls.inspection import load
from kiam.tls.issue import Period, make_authority
from kiam.tls.summary import Side


def certs(directory: Path, *words: str) -> int:
    return main(["certs", words[0], "--dir", str(directory), *words[1:]])


def files(directory: Path, name: str) -> TLSFiles:
    return TLSFiles(directory / f"{name}.pem", directory / f"{name}-key.pem", directory / "ca.pem")


def names(path: Path) -> str:
    return read_certificates(path.read_bytes())[0].names


def test_files_have_the_documented_names_and_work_on_both_sides(tmp_path: Path) -> None:
    assert [certs(tmp_path, step) for step in ("init", "server", "agent")] == [0, 0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "agent-key.pem",
        "agent.pem",
        "ca-key.pem",
        "ca.pem",
        "server-key.pem",
        "server.pem",
    ]
    for name, side in (("server", Side.SERVER), ("agent", Side.CLIENT)):
        assert load(files(tmp_path, name), side)[1].problems == ()


def test_keys_are_for_their_owner_only(tmp_path: Path) -> None:
    for step in ("init", "server", "agent"):
        certs(tmp_path, step)
    for key in tmp_path.glob("*-key.pem"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600, key


def test_server_certificate_covers_every_address_agents_and_probes_use(tmp_path: Path) -> None:
    certs(tmp_path, "init")
    certs(tmp_path, "server", "--namespace", "iam", "--host", "10.1.2.3", "--host", "kiam.example.com")
    assert names(tmp_path / "server.pem") == (
        "kiam-server, kiam-server.iam, kiam-server.iam.svc, kiam-server.iam.svc.cluster.local, localhost, "
        "kiam.example.com, 127.0.0.1, 10.1.2.3"
    )


def test_agent_certificate_names_its_node(tmp_path: Path) -> None:
    certs(tmp_path, "init")
    node = "ip-10-0-0-1.eu-west-1.compute.internal"
    certs(tmp_path, "agent", "--node", node)
    assert names(tmp_path / "agent.pem") == node


def test_agent_certificate_without_node_names_none(tmp_path: Path) -> None:
    certs(tmp_path, "init")
    certs(tmp_path, "agent")
    assert names(tmp_path / "agent.pem") == "no names"


def test_authority_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    certs(tmp_path, "init")
    before = [(tmp_path / name).read_bytes() for name in ("ca.pem", "ca-key.pem")]
    assert certs(tmp_path, "init") == 1
    assert [(tmp_path / name).read_bytes() for name in ("ca.pem", "ca-key.pem")] == before
    assert f"--dir: {tmp_path / 'ca.pem'} is there already" in capsys.readouterr().err


def test_a_lone_authority_key_is_not_overwritten_either(tmp_path: Path) -> None:
    (tmp_path / "ca-key.pem").write_text("precious")
    assert certs(tmp_path, "init") == 1
    assert (tmp_path / "ca-key.pem").read_text() == "precious"
    assert not (tmp_path / "ca.pem").exists()


def test_certificate_is_replaced_only_when_told_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    certs(tmp_path, "init")
    certs(tmp_path, "agent")
    before = (tmp_path / "agent.pem").read_bytes()
    assert certs(tmp_path, "agent", "--node", "b") == 1
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "agent.pem").read_bytes() == before
    assert certs(tmp_path, "agent", "--node", "b", "--overwrite") == 0
    assert names(tmp_path / "agent.pem") == "b"
    assert stat.S_IMODE((tmp_path / "agent-key.pem").stat().st_mode) == 0o600


def test_secret_command_keeps_the_documented_keys_under_other_file_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["certs", "init"])
    main(["certs", "server"])
    main(["certs", "agent", "--node", "b", "--out", "agent-b"])
    printed = capsys.readouterr().out
    assert (
        "kubectl create secret generic kiam-server-tls -n kube-system \\\n"
        "    --from-file=ca.pem \\\n    --from-file=server.pem \\\n    --from-file=server-key.pem\n"
    ) in printed
    assert (
        "kubectl create secret generic kiam-agent-tls -n kube-system \\\n    --from-file=ca.pem \\\n"
        "    --from-file=agent.pem=agent-b.pem \\\n    --from-file=agent-key.pem=agent-b-key.pem\n"
    ) in printed


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("server", "--host", "kiam-server:443"), "argument --host: 'kiam-server:443' is neither"),
        (("agent", "--node", "Node_1"), "argument --node: 'Node_1' can't be a node's name"),
        (("agent", "--days", "0"), "argument --days: '0' is not a number of days"),
        (("agent", "--out", "ca"), "argument --out: 'ca' can't be the name"),
        (("agent", "--out", "../x"), "argument --out: '../x' can't be the name"),
        (("init", "--common-name", "x" * 65), "argument --common-name: a common name has 1 to 64"),
    ],
)
def test_bad_values_name_their_flag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], says: str
) -> None:
    with pytest.raises(SystemExit) as exited:
        certs(tmp_path, *words)
    assert exited.value.code == 2
    assert says in capsys.readouterr().err


def test_missing_authority_says_how_to_make_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert certs(tmp_path, "server") == 1
    assert f"make an authority with 'kiam certs init --dir {tmp_path}'" in capsys.readouterr().err


def test_authority_with_anothers_key_signs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    certs(tmp_path, "init")
    (tmp_path / "ca-key.pem").write_bytes(make_authority("other", Period.lasting(timedelta(days=1))).key)
    assert certs(tmp_path, "server") == 1
    assert "the authority's key is not the key of the authority's certificate" in capsys.readouterr().err
    assert not (tmp_path / "server.pem").exists()


def test_expired_authority_signs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    now = datetime.now(UTC)
    expired = make_authority("old", Period(now - timedelta(days=9), now - timedelta(days=1)))
    (tmp_path / "ca.pem").write_bytes(expired.cert)
    (tmp_path / "ca-key.pem").write_bytes(expired.key)
    assert certs(tmp_path, "server") == 1
    assert "the authority expired at" in capsys.readouterr().err


def test_certificate_never_outlives_its_authority(tmp_path: Path) -> None:
    certs(tmp_path, "init", "--days", "10")
    certs(tmp_path, "server", "--days", "300")
    ca, server = ((read_certificates((tmp_path / name).read_bytes())[0]) for name in ("ca.pem", "server.pem"))
    assert server.not_after == ca.not_after


def test_renewing_keeps_names_and_lifetime_and_makes_new_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    certs(tmp_path, "init")
    certs(tmp_path, "server", "--host", "10.0.0.1", "--days", "90")
    certs(tmp_path, "agent", "--node", "node-a")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    old = read_certificates(before["server.pem"])[0]
    assert certs(tmp_path, "renew") == 0
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    new = read_certificates(after["server.pem"])[0]
    assert (new.names, new.subject) == (old.names, old.subject)
    assert abs((new.not_after - new.not_before) - (old.not_after - old.not_before)).days == 0
    assert {name for name in before if before[name] == after[name]} == {"ca.pem", "ca-key.pem"}
    assert stat.S_IMODE((tmp_path / "server-key.pem").stat().st_mode) == 0o600
    printed = capsys.readouterr().out
    assert "kubectl create secret generic kiam-server-tls" in printed
    for step in ("server", "agent"):
        files = TLSFiles(tmp_path / f"{step}.pem", tmp_path / f"{step}-key.pem", tmp_path / "ca.pem")
        assert load(files, Side.CLIENT)[1].problems == ()


def test_certificates_of_another_authority_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    certs(other, "init")
    certs(other, "agent")
    certs(tmp_path, "init")
    for name in ("agent.pem", "agent-key.pem"):
        (tmp_path / name).write_bytes((other / name).read_bytes())
    before = (tmp_path / "agent.pem").read_bytes()
    assert certs(tmp_path, "renew") == 1
    captured = capsys.readouterr()
    assert "it isn't of this authority" in captured.out
    assert "make one with kiam certs" in captured.err
    assert (tmp_path / "agent.pem").read_bytes() == before
