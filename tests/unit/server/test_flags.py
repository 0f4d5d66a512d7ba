"""The server's flags: what is taken, and the one line for what isn't."""

from __future__ import annotations

import argparse
from datetime import timedelta
from pathlib import Path

import pytest

from kiam.cli.server import configure, doubts, make_config
from kiam.errors import UserError
from kiam.server.settings import PolicySettings, RestrictionFormat, ServerSettings, SessionSettings, TagScope


def arguments_of(directory: Path, *flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    configure(parser)
    for name in ("cert", "key", "ca"):
        (directory / name).touch()
    files = [f"--{name}={directory / name}" for name in ("cert", "key", "ca")]
    return parser.parse_args([*files, *flags])


def parse(directory: Path, *flags: str) -> ServerSettings:
    return make_config(arguments_of(directory, *flags))


BASE = "--role-base-arn=arn:aws:iam::123456789012:role/"


def test_defaults_are_the_conventional_ones_but_for_the_refresh(tmp_path: Path) -> None:
    config = parse(tmp_path, BASE)
    assert (config.bind, config.kubeconfig, config.sync) == ("localhost:9610", "", timedelta(minutes=1))
    assert (config.fetchers, config.sessions, config.policy) == (8, SessionSettings(), PolicySettings())
    assert (config.session_duration, config.session_refresh) == (timedelta(minutes=15), timedelta(seconds=630))
    assert (config.assume_role_arn, config.region) == ("", "")
    assert not config.disable_strict_namespace_regexp
    assert not config.node_authorization


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ((), "give either --role-base-arn or --role-base-arn-autodetect"),
        ((BASE, "--session-duration=14m59s"), "--session-duration: .* is not between 15m and 12h"),
        ((BASE, "--session-duration=13h"), "--session-duration: .* is not between 15m and 12h"),
        ((BASE, "--session-refresh=15m"), "--session-refresh: 15m must be less than --session-duration"),
        ((BASE, "--sync=0s"), "--sync: must be more than 0s"),
        ((BASE, "--session-tags=namespace"), "need the cluster's name; give --cluster-name"),
        ((BASE, "--session={cluster}"), "need the cluster's name; give --cluster-name"),
        ((BASE, "--source-identity={cluster}.{pod}"), "need the cluster's name; give --cluster-name"),
    ],
)
def test_flags_that_cannot_work_are_named_in_one_line(tmp_path: Path, flags: tuple[str, ...], line: str) -> None:
    with pytest.raises(UserError, match=line) as error:
        parse(tmp_path, *flags)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "flag",
    [
        "--fetchers=0",
        "--fetchers=x",
        "--prefetch-buffer-size=-1",
        "--role-base-arn=role/",
        "--role-base-arn=arn:aws:iam::x:role/",
        "--assume-role-arn=team//server",
        "--assume-role-arn=arn:aws:iam::123456789012:user/server",
        "--session-duration=15",
    ],
)
def test_values_that_cannot_be_read_are_refused(tmp_path: Path, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(tmp_path, *([] if "base" in flag else [BASE]), flag)
    assert f"argument {flag.partition('=')[0]}: '{flag.partition('=')[2]}' is not" in capsys.readouterr().err


def test_refresh_that_is_set_is_honoured(tmp_path: Path) -> None:
    assert parse(tmp_path, BASE, "--session-refresh=5m").session_refresh == timedelta(minutes=5)
    assert parse(tmp_path, BASE, "--session-refresh=0s").session_refresh == timedelta(0)


@pytest.mark.parametrize("role", ["server", "/server", "/team/x", "arn:aws:iam::123456789012:role/server"])
def test_own_role_may_be_a_name_or_a_path_as_in_v4_2(tmp_path: Path, role: str) -> None:
    assert parse(tmp_path, BASE, f"--assume-role-arn={role}").assume_role_arn == role


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--session={node}", "'{node}' is none of {cluster}, {namespace}, {serviceaccount}, {pod}"),
        ("--source-identity={}", "'{}' is none of"),
        ("--cluster-name=a;b", "'a;b' is not a cluster's name: give 1 to 256 letters"),
        ("--default-permitted=(", "'(' is not an expression: "),
        ("--session-tags=all", "invalid choice: 'all'"),
    ],
)
def test_values_about_sessions_and_policy_that_cannot_work_are_refused(
    tmp_path: Path, flag: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(tmp_path, BASE, flag)
    assert says in capsys.readouterr().err


def test_what_works_but_hardly_as_it_is_meant_is_said_with_its_fix(tmp_path: Path) -> None:
    assert list(doubts(arguments_of(tmp_path, BASE, "--session={namespace}.{pod}"))) == []
    flags = (BASE, "--session-refresh=5m", "--session={namespace}-{pod}", "--source-identity={serviceaccount}.{pod}")
    found = list(doubts(arguments_of(tmp_path, *flags)))
    assert [what.partition(" ")[0] for what, _ in found] == [
        "--session-refresh=5m",
        "--session={namespace}-{pod}",
        "--source-identity={serviceaccount}.{pod}",
    ]
    assert found[1][1].endswith("as in {namespace}_{pod}")


def test_sessions_and_policy_are_read(tmp_path: Path) -> None:
    flags = ("--session={namespace}", "--cluster-name=prod", "--session-tags=pod", "--source-identity={pod}")
    config = parse(tmp_path, BASE, *flags, "--default-permitted=.*", "--kube2iam-annotations")
    as_expressions = parse(tmp_path, BASE, "--kube2iam-annotations", "--namespace-restriction-format=regexp")
    assert as_expressions.policy == PolicySettings("", True, RestrictionFormat.REGEXP)
    assert config.sessions == SessionSettings("{namespace}", "prod", TagScope.POD, "{pod}")
    assert config.policy == PolicySettings(".*", True)
