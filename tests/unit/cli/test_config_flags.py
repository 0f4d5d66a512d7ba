from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest

from kiam.cli import build_parser, main
from kiam.cli.config_flags import check_flags
from kiam.cli.options import WITHOUT_EFFECT, flags_without_effect
from kiam.tls.issue import Period, make_authority, make_certificate
from kiam.verify.results import CheckResult, Status

BASE_ARN = "--role-base-arn=arn:aws:iam::123456789012:role/"


def flags(*words: str) -> dict[str, CheckResult]:
    arguments = build_parser("config").parse_args(["config", "check", *words])
    return {result.check: result for result in check_flags(arguments.checked_parser, arguments).results}


def test_every_bad_flag_is_reported_with_its_reason_not_only_the_first() -> None:
    found = flags("agent", "--level=loud", "--port=70000", "--cert=/nowhere", "--grpc-keepalive-time-duration=5")
    failures = {check: result.seen for check, result in found.items() if result.status is Status.FAIL}
    assert failures == {
        "--level": "'loud' is none of debug, info, warn, error",
        "--port": "'70000' is not a port; give a number from 1 to 65535",
        "--cert": "no file at '/nowhere'",
        "--key": "required, and not given",
        "--ca": "required, and not given",
        "--grpc-keepalive-time-duration": "'5' is not a duration; write it like 1m30s, 500ms or 2h",
    }
    assert all(check in result.fix_text for check, result in found.items() if result.status is Status.FAIL)


def test_values_are_read_back_as_they_were_understood() -> None:
    found = flags("agent", "--host=10.0.0.1", "--host-interface=!eth0", "--gateway-timeout-creation=90s", "--iptables")
    assert found["--host"].seen == "10.0.0.1"
    assert found["--host-interface"].seen == "!eth0"
    assert found["--gateway-timeout-creation"].seen == "1m30s"
    assert found["--iptables"].seen == "on"
    assert found["--port"].seen == "3100 (default)"


@pytest.mark.parametrize("command", ["agent", "server"])
def test_every_flag_of_the_command_has_its_line(command: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    tls = [f"--cert={file}", f"--key={file}", f"--ca={file}"]
    destinations = vars(build_parser(command).parse_args([command, *tls])).keys() - {"command"}
    assert {flag.removeprefix("--").replace("-", "_") for flag in flags(command)} == destinations


def test_conventional_flags_without_effect_are_taken_with_a_warning() -> None:
    agent = flags("agent", "--server-address-refresh=10s", "--prometheus-sync-interval=10s")
    server = flags("server", "--prefetch-buffer-size=5000")
    for result in (
        agent["--server-address-refresh"],
        agent["--prometheus-sync-interval"],
        server["--prefetch-buffer-size"],
    ):
        assert result.status is Status.WARN
        assert "has no effect any more" in result.seen
    assert {result.status for result in flags("server", "--prefetch-buffer-size=1000").values()} == {
        Status.PASS,
        Status.FAIL,
    }


def test_flags_without_effect_exist_with_those_defaults(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    tls = [f"--cert={file}", f"--key={file}", f"--ca={file}"]
    agent = build_parser("agent").parse_args(["agent", *tls])
    server = build_parser("server").parse_args(["server", *tls])
    assert flags_without_effect(agent) == flags_without_effect(server) == []
    for name, (default, _) in WITHOUT_EFFECT.items():
        assert getattr(agent, name, getattr(server, name, None)) == default
    changed = build_parser("agent").parse_args(["agent", *tls, "--server-address-refresh=1s"])
    assert changed.server_address_refresh == timedelta(seconds=1)
    assert flags_without_effect(changed) == [
        "--server-address-refresh has no effect any more: addresses are always looked up anew"
    ]


def test_certificates_are_inspected_even_when_other_flags_are_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    authority = make_authority("ca", Period.lasting(timedelta(days=30)))
    issued = make_certificate(
        "kiam-server", ["kiam-server"], Period.lasting(timedelta(days=3)), authority.cert, authority.key
    )
    for name, content in (("cert", issued.cert), ("key", issued.key), ("ca", authority.cert)):
        (tmp_path / name).write_bytes(content)
    tls = [f"--{name}={tmp_path / name}" for name in ("cert", "key", "ca")]
    assert main(["config", "check", "agent", "--output=json", *tls, "--port=0", "--server-address=nonsense"]) == 1
    checks = json.loads(capsys.readouterr().out)["checks"]
    (certificate,) = [check for check in checks if check["check"] == "certificate"]
    assert certificate["status"] == "WARN"
    assert f"expires at {issued.not_after:%Y-%m-%d %H:%M:%SZ}" in certificate["seen"]
    (server,) = [check for check in checks if check["check"] == "server"]
    assert (server["status"], server["seen"]) == ("SKIP", "needs --server-address")


def test_table_shows_every_check_and_survives_brackets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = tmp_path / "[red]"
    odd.touch()
    assert main(["config", "check", "agent", f"--cert={odd}"]) == 1
    printed = capsys.readouterr().out
    assert "[red]" in printed
    assert "--allow-route-regexp" in printed


@pytest.mark.parametrize(("node", "status"), [("node-1", "PASS"), ("node-2", "WARN")])
def test_certificate_of_another_node_is_noticed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], node: str, status: str
) -> None:
    for step in (["init"], ["agent", "--node=node-1"]):
        main(["certs", *step, f"--dir={tmp_path}"])
    tls = [f"--cert={tmp_path}/agent.pem", f"--key={tmp_path}/agent-key.pem", f"--ca={tmp_path}/ca.pem"]
    capsys.readouterr()
    main(
        [
            "config",
            "check",
            "agent",
            "--output=json",
            *tls,
            "--host=127.0.0.1",
            f"--node-name={node}",
            "--server-address=127.0.0.1:9",
            "--instance-metadata-url=http://127.0.0.1:9",
        ]
    )
    checks = {check["check"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["node"]["status"] == status


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--server-address=kiam-server", "'kiam-server' is not HOST:PORT; write it like kiam-server:443"),
        ("--server-address=:443", "':443' is not HOST:PORT; write it like kiam-server:443"),
        ("--outage-grace=-1s", "'-1s' is negative; give 0s or more"),
        ("--grpc-keepalive-time-duration=0s", "'0s' is not more than 0s"),
    ],
)
def test_values_that_could_only_fail_later_are_refused_at_once(
    flag: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exited:
        main(["agent", "--host=127.0.0.1", flag])
    assert exited.value.code == 2
    assert f"argument {flag.partition('=')[0]}: {says}" in capsys.readouterr().err
