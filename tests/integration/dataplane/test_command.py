"""``kiam dataplane install|remove|status`` as a person, an init container or a unit runs them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sandbox.netns import NODE_IPV4, NetNs
from tests.sandbox.process import placed, wait_until

KIAM = (sys.executable, "-m", "kiam", "dataplane")
WHERE = (f"--host={NODE_IPV4}", "--port=8181", "--host-interface=cali+")
KINDS = ("iptables", "nftables")


@pytest.fixture
def node() -> Iterator[NetNs]:
    with NetNs("command") as netns:
        netns.ip(f"address add {NODE_IPV4}/32 dev lo")
        yield netns


def kiam(
    node: NetNs, *arguments: str, env: dict[str, str] | None = None, wrapper: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        placed([*wrapper, *KIAM, *arguments], node.name),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(env or {})},
    )


@pytest.mark.parametrize("kind", KINDS)
def test_install_status_and_remove(node: NetNs, kind: str) -> None:
    done = kiam(node, "install", f"--dataplane={kind}", *WHERE)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{kind}: pods on cali+ are redirected to {NODE_IPV4}:8181\n"

    status = kiam(node, "status", f"--dataplane={kind}", "--output=json", *WHERE)
    (found,) = json.loads(status.stdout)
    assert (found["dataplane"], found["condition"], found["redirects"]) == (kind, "installed", 0)
    assert found["problems"] == []
    assert set(found["drops"]) >= {"bypass", "other-port", "other-protocol", "ipv6"}
    assert any(str(NODE_IPV4) in line for line in found["found"])
    assert status.returncode == 0

    other = kiam(node, "status", f"--dataplane={kind}", "--output=json", *WHERE, "--port=9999")
    assert json.loads(other.stdout)[0]["condition"] == "different"
    assert other.returncode == 1

    table = kiam(node, "status", f"--dataplane={kind}")
    assert kind in table.stdout
    assert "installed" in table.stdout
    assert table.returncode == 0

    gone = kiam(node, "remove", f"--dataplane={kind}")
    assert (gone.returncode, gone.stdout) == (0, f"{kind}: nothing of ours is left\n")
    absent = kiam(node, "status", f"--dataplane={kind}", "--output=json")
    assert json.loads(absent.stdout)[0]["condition"] == "absent"
    assert absent.returncode == 1


def test_the_host_address_may_come_from_the_environment(node: NetNs) -> None:
    arguments = ("install", "--dataplane=nftables", "--host-interface=cali+")
    assert kiam(node, *arguments, env={"HOST_IP": str(NODE_IPV4)}).returncode == 0
    missing = kiam(node, *arguments, env={"HOST_IP": ""})
    assert missing.returncode == 1
    assert "--host is missing" in missing.stderr
    wrong = kiam(node, *arguments, env={"HOST_IP": "node-7"})
    assert "HOST_IP: 'node-7' is not an IPv4 address" in wrong.stderr


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--host=10.9.9.9",), "--host 10.9.9.9 is not an address of this node"),
        (("--host=127.0.0.1",), "can't be reached from pods"),
        (("--host=169.254.169.254",), "is the instance metadata service itself"),
        (("--host=node-7",), "'node-7' is not an IPv4 address"),
        (("--host6=2001:db8::77",), "--host6 2001:db8::77 is not an address of this node"),
        (("--host6=10.0.0.1",), "'10.0.0.1' is not an IPv6 address"),
        (("--port=0",), "'0' is not a port"),
        (("--host-interface=cali*",), "write it like cali+, eth0 or !eth0"),
        (("--host-network=maybe",), "invalid"),
        (("--iptables-backend=old",), "invalid"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_bad_flags_get_one_clear_line_and_change_nothing(
    node: NetNs, kind: str, flags: tuple[str, ...], expected: str
) -> None:
    done = kiam(node, "install", f"--dataplane={kind}", *WHERE, *flags)
    assert done.returncode != 0
    assert expected in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert node.run("nft", "list", "ruleset").stdout == ""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("action", ["install", "remove", "status"])
def test_without_net_admin_one_line_says_so(node: NetNs, kind: str, action: str) -> None:
    assert kiam(node, "install", f"--dataplane={kind}", *WHERE).returncode == 0
    powerless = (
        # Still root by name: a checkout below /root, say, can't be read by anybody else.
        "setpriv",
        "--bounding-set=-all",
        "--inh-caps=-all",
    )
    arguments = (action, f"--dataplane={kind}", *(WHERE if action == "install" else ()))
    done = kiam(node, *arguments, wrapper=powerless)
    assert done.returncode != 0
    said = " ".join((done.stdout + done.stderr).split())
    assert "NET_ADMIN" in said.replace("│", "")
    assert "Traceback" not in said


def without(tmp_path: Path, *programs: str) -> dict[str, str]:
    """An environment whose PATH has everything but those programs."""
    for folder in ("/usr/sbin", "/sbin", "/usr/bin", "/bin"):
        for program in Path(folder).iterdir():
            link = tmp_path / program.name
            if not program.name.startswith(programs) and not link.exists():
                link.symlink_to(program)
    return {"PATH": str(tmp_path)}


def test_without_iptables_the_package_is_named(node: NetNs, tmp_path: Path) -> None:
    env = without(tmp_path, "iptables", "ip6tables")
    for action in (("install", *WHERE), ("remove",)):
        done = kiam(node, action[0], "--dataplane=iptables", *action[1:], env=env)
        assert done.returncode == 1
        assert "install the package iptables" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_without_ip6tables_nothing_is_installed_rather_than_half(node: NetNs, tmp_path: Path) -> None:
    env = without(tmp_path, "ip6tables")
    done = kiam(node, "install", "--dataplane=iptables", *WHERE, env=env)
    assert done.returncode == 1
    assert "ip6tables with the nft backend isn't installed" in done.stderr
    assert node.run("nft", "list", "ruleset").stdout == ""


def test_without_ip6tables_what_is_there_is_not_called_installed(node: NetNs, tmp_path: Path) -> None:
    assert kiam(node, "install", "--dataplane=iptables", *WHERE).returncode == 0
    status = kiam(*(node, "status", "--dataplane=iptables", "--output=json"), env=without(tmp_path, "ip6tables"))
    (found,) = json.loads(status.stdout)
    assert found["condition"] == "different"
    assert "ip6tables-nft isn't installed" in found["problems"][0]
    assert status.returncode == 1


def test_without_nft_the_package_is_named(node: NetNs, tmp_path: Path) -> None:
    done = kiam(node, "install", "--dataplane=nftables", *WHERE, env=without(tmp_path, "nft"))
    assert done.returncode == 1
    assert "install the package nftables" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_removing_all_goes_on_after_one_that_cannot(node: NetNs, tmp_path: Path) -> None:
    assert kiam(node, "install", "--dataplane=nftables", *WHERE).returncode == 0
    # The eBPF programs of this node would be looked for on the machine's own root cgroup.
    done = kiam(node, "remove", env={**without(tmp_path, "iptables", "ip6tables"), "KIAM_EBPF_CGROUP": "/nowhere"})
    assert done.returncode == 1
    assert "nftables: nothing of ours is left" in done.stdout
    assert node.run("nft", "list", "ruleset").stdout == ""


NO_EBPF = {"KIAM_EBPF_CGROUP": "/nowhere"}
"""Not to look for programs on the machine's own root cgroup."""


def conditions(node: NetNs) -> tuple[dict[str, str], str]:
    status = kiam(node, "status", "--output=json", env=NO_EBPF)
    return {one["dataplane"]: one.get("condition", "unknown") for one in json.loads(status.stdout)}, status.stderr


def test_installing_one_takes_the_others_out(node: NetNs) -> None:
    assert kiam(node, "install", "--dataplane=iptables", *WHERE, env=NO_EBPF).returncode == 0
    done = kiam(node, "install", "--dataplane=nftables", *WHERE, env=NO_EBPF)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1:] == ["iptables: taken out, nftables is in its place"]
    assert conditions(node) == ({"iptables": "absent", "nftables": "installed", "ebpf": "unknown"}, "")


def test_others_are_kept_if_asked_for_and_status_warns_of_several(node: NetNs) -> None:
    for kind in KINDS:
        assert kiam(node, "install", f"--dataplane={kind}", *WHERE, "--keep-others", env=NO_EBPF).returncode == 0
    found, warning = conditions(node)
    assert found == {"iptables": "installed", "nftables": "installed", "ebpf": "unknown"}
    assert warning.startswith("kiam dataplane: warning: iptables and nftables are installed at the same time")
    assert len(warning.splitlines()) == 1


def test_remove_all_takes_everything_off_the_node(node: NetNs) -> None:
    for kind in KINDS:
        assert kiam(node, "install", f"--dataplane={kind}", *WHERE, "--keep-others", env=NO_EBPF).returncode == 0
    done = kiam(node, "remove", "--all")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [f"{kind}: nothing of ours is left" for kind in (*KINDS, "ebpf")]
    assert node.run("nft", "list", "ruleset").stdout == ""
    assert kiam(node, "remove", "--all", "--dataplane=iptables").returncode == 2


def test_watch_shows_it_again_until_interrupted(node: NetNs, tmp_path: Path) -> None:
    assert kiam(node, "install", "--dataplane=nftables", *WHERE).returncode == 0
    command = [*KIAM, "status", "--dataplane=nftables", "--output=json", "--watch", *WHERE]
    with (tmp_path / "out").open("w") as output:
        watching = subprocess.Popen(placed(command, node.name), stdout=output, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: len((tmp_path / "out").read_text().splitlines()) >= 2, "a second look")
        watching.send_signal(signal.SIGINT)
        _, stderr = watching.communicate(timeout=60)
    finally:
        watching.kill()
    assert (watching.returncode, stderr) == (0, "")
    for line in (tmp_path / "out").read_text().splitlines():
        assert json.loads(line)[0]["condition"] == "installed"


def test_status_says_what_ip_netns_exec_hides_and_how_to_see_it(node: NetNs) -> None:
    """It mounts /sys anew (ip-netns(8)), and with it the cgroup hierarchy is gone for the command."""
    status = [*KIAM, "status", "--dataplane=ebpf", "--output=json"]
    exec_ = ["ip", "netns", "exec", node.name, *status]
    (hidden,) = json.loads(subprocess.run(exec_, capture_output=True, text=True, check=False).stdout)
    assert "hidden from this process" in hidden["error"]
    (instead,) = re.findall(r"run it with '([^']*)'", hidden["error"])
    assert instead == f"nsenter --net=/run/netns/{node.name}"
    done = subprocess.run([*instead.split(), *status], capture_output=True, text=True, check=False)
    assert "error" not in json.loads(done.stdout)[0]
