"""The image, built by the Dockerfile's own steps, starts as the chart starts it: confined, read-only, and not root."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from kiam import __version__
from kiam.cli import COMMANDS
from kiam.dataplane.cgroups import find_cgroup2_root
from tests.deploy.chart import GIVEN_CERTIFICATES, Manifest, at, find, manifests, merged
from tests.deploy.image import Builder, Image, debootstrap, enter

pytestmark = [pytest.mark.image, pytest.mark.timeout(1200)]

LARGEST = {"agent": 250_000_000, "server": 400_000_000, "agent-bcc": 500_000_000}
"""Bytes that a target's files may take."""


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Image]]:
    folder = tmp_path_factory.mktemp("image")
    try:
        debootstrap(folder / "base")
        yield Builder(folder, folder / "base").build()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def image(images: Mapping[str, Image]) -> Image:
    """The agent's."""
    return images["agent"]


@pytest.fixture(scope="session")
def server_image(images: Mapping[str, Image]) -> Image:
    return images["server"]


def confined(security: Manifest) -> list[str]:
    """The start of a command line that gives up what a container with that securityContext doesn't have."""
    kept = security["capabilities"].get("add", [])
    words = ["setpriv", "--no-new-privs", "--inh-caps=-all", "--clear-groups"]
    words += ["--bounding-set=" + ",".join(["-all", *(f"+{name.lower()}" for name in kept)])]
    if security["runAsUser"]:
        words += [f"--reuid={security['runAsUser']}", f"--regid={security['runAsGroup']}"]
    return words


def run(
    image: Image,
    security: Manifest,
    command: list[str],
    environment: Mapping[str, str] | None = None,
    setup: Sequence[str] = (),
) -> subprocess.CompletedProcess[str]:
    """Run a command as the chart runs it: read-only file system, capabilities dropped; on a network of its own."""
    line = enter(
        image.root,
        [*confined(security), *command],
        environment=image.environment | dict(environment or {}),
        setup=["ip link set lo up", "ip address add 10.0.0.1/32 dev lo", *setup],
        read_only=True,
        namespaces=("--mount", "--pid", "--fork", "--kill-child", "--net"),
    )
    return subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)


def security_context(container: str, *values: Manifest) -> Manifest:
    workload = find(manifests(GIVEN_CERTIFICATES, *values), f"DaemonSet/kiam-{container}")
    context: Manifest = workload["spec"]["template"]["spec"]["containers"][0]["securityContext"]
    return context


@pytest.mark.parametrize("target", LARGEST)
@pytest.mark.parametrize("program", ["/kiam", "kiam"])
def test_both_names_start_it(images: Mapping[str, Image], target: str, program: str) -> None:
    done = run(images[target], security_context("server"), [program, "--version"])
    assert (done.stdout, done.returncode) == (f"kiam {__version__}\n", 0), done.stderr


@pytest.mark.parametrize("target", ["agent", "server"])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_works_without_root_or_a_writable_file_system(
    images: Mapping[str, Image], target: str, command: str
) -> None:
    done = run(images[target], security_context("server"), ["/kiam", command, "--help"])
    assert done.returncode == 0, done.stderr
    assert f"usage: kiam {command}" in done.stdout


@pytest.mark.parametrize("target", LARGEST)
def test_the_images_own_command_is_the_help(images: Mapping[str, Image], target: str) -> None:
    done = run(images[target], security_context("agent"), images[target].command)
    assert done.returncode == 0, done.stderr
    assert set(COMMANDS) <= set(done.stdout.split())


@pytest.mark.parametrize("target", LARGEST)
def test_by_default_it_is_not_root(images: Mapping[str, Image], target: str) -> None:
    assert images[target].user == "65532:65532"
    assert "65532:65532" in (images[target].root / "etc/passwd").read_text()


def test_the_agents_image_has_no_server_and_says_so(image: Image) -> None:
    script = "kiam certs init --dir /tmp/t >/dev/null && kiam certs server --dir /tmp/t >/dev/null && exec kiam server"
    flags = ["--cert=/tmp/t/server.pem", "--key=/tmp/t/server-key.pem", "--ca=/tmp/t/ca.pem"]
    flags += ["--role-base-arn=arn:aws:iam::123456789012:role/"]
    done = run(image, security_context("server"), ["sh", "-c", f"{script} {shlex.join(flags)}"])
    assert done.returncode == 1
    assert "is missing; use the servers' image (deploy/Dockerfile, target server)" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup for the eBPF programs, so that no process of this machine is redirected."""
    made = find_cgroup2_root() / f"kiam-image-{uuid.uuid4().hex[:8]}"
    made.mkdir()
    yield made
    made.rmdir()


@pytest.mark.parametrize(
    ("target", "dataplane"), [("agent", "iptables"), ("agent", "nftables"), ("agent", "ebpf"), ("agent-bcc", "ebpf")]
)
def test_dataplanes_install_with_the_charts_capabilities(
    images: Mapping[str, Image], cgroup: Path, target: str, dataplane: str
) -> None:
    """With no other: what the chart gives is enough. The agent's image has no compiler."""
    image = images[target]
    if target == "agent-bcc":  # as on a kernel that refuses them: compiled here
        (image.root / "opt/kiam/lib/python3.11/site-packages/kiam/dataplane/bpf/kiam.prebuilt.json").unlink()
    chosen = at("agent.dataplane", dataplane)
    agent = find(manifests(GIVEN_CERTIFICATES, chosen), "DaemonSet/kiam-agent")["spec"]["template"]["spec"]
    (container,) = agent["initContainers"]
    arguments = " ".join(container["args"]).replace("$(HOST_IP)", "10.0.0.1")
    steps = [f"install {arguments}", f"status {arguments}", f"remove --dataplane={dataplane}"]
    script = " && ".join(f"/kiam dataplane {step}" for step in steps)
    done = run(image, container["securityContext"], ["sh", "-c", script], {"KIAM_EBPF_CGROUP": str(cgroup)})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "installed" in done.stdout


SERVES = """
/kiam certs init --dir /tmp/tls >/dev/null && /kiam certs agent --dir /tmp/tls --out agent >/dev/null || exit 3
"$@" 2>/tmp/log & agent=$!
for _ in $(seq 300); do {ready} && break; kill -0 $agent || break; sleep 0.1; done
{ready} && /opt/kiam/bin/python -c 'import urllib.request as u; print(u.urlopen("http://10.0.0.1:8181/ping").read().decode())'
cat /tmp/log >&2
kill $agent; wait $agent
"""
"""Starts an agent as its pod does, waits for its readiness probe, and asks what its liveness probe asks."""


@pytest.mark.parametrize("dataplane", ["none", "ebpf"])
def test_an_agent_serves_as_the_chart_starts_it(image: Image, cgroup: Path, dataplane: str) -> None:
    files = {"caFileName": "ca.pem", "certFileName": "agent.pem", "keyFileName": "agent-key.pem"}
    chosen = merged(at("agent.dataplane", dataplane), at("agent.tlsCerts", files))
    agent = find(manifests(GIVEN_CERTIFICATES, chosen), "DaemonSet/kiam-agent")["spec"]["template"]["spec"]
    (container,) = agent["containers"]
    words = [
        word.replace("$(HOST_IP)", "10.0.0.1").replace("/etc/kiam/tls", "/tmp/tls")
        for word in container["command"] + container["args"]
    ]
    ready = shlex.join(container["readinessProbe"]["exec"]["command"])
    environment = {"KIAM_EBPF_CGROUP": str(cgroup), "NODE_NAME": "node", "HOST_IP": "10.0.0.1"}
    script = SERVES.replace("{ready}", ready)
    done = run(image, container["securityContext"], ["sh", "-c", script, "sh", *words], environment)
    assert done.stdout == "pong\n", done.stderr
    if dataplane != "none":
        run(
            image,
            container["securityContext"],
            ["/kiam", "dataplane", "remove", f"--dataplane={dataplane}"],
            environment,
        )


SERVES_443 = """
/kiam certs init --dir /tmp/tls >/dev/null && /kiam certs server --dir /tmp/tls >/dev/null || exit 3
echo '{"clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}], "users": [{"name": "u", "user": {}}],
  "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}], "current-context": "c"}' >/tmp/kubeconfig
"$@" 2>/tmp/log & server=$!
for _ in $(seq 300); do grep -q :01BB /proc/net/tcp /proc/net/tcp6 && break; kill -0 $server || break; sleep 0.1; done
{live} && {ready}
cat /tmp/log >&2
kill $server; wait $server
"""


def test_a_server_that_is_not_root_serves_443_as_the_chart_starts_it(server_image: Image) -> None:
    """Without an API it is alive and not ready: its probes, over TLS, tell the one from the other."""
    files = {"caFileName": "ca.pem", "certFileName": "server.pem", "keyFileName": "server-key.pem"}
    values = merged(
        at("server.tlsCerts", files),
        at("server.extraArgs", {"kubeconfig": "/tmp/kubeconfig"}),
        at("server.roleBaseArn", "arn:aws:iam::123456789012:role/"),
    )
    pod = find(manifests(GIVEN_CERTIFICATES, values), "DaemonSet/kiam-server")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["securityContext"]["runAsUser"] == 65532
    words, live, ready = (
        [word.replace("/etc/kiam/tls", "/tmp/tls") for word in line]
        for line in (
            container["command"] + container["args"],
            container["livenessProbe"]["exec"]["command"],
            container["readinessProbe"]["exec"]["command"],
        )
    )
    script = SERVES_443.replace("{live}", shlex.join(live)).replace("{ready}", shlex.join(ready))
    (sysctl,) = pod["securityContext"]["sysctls"]
    done = run(
        server_image,
        container["securityContext"],
        ["sh", "-c", script, "sh", *words],
        setup=[f"sysctl -qw {sysctl['name']}={sysctl['value']}"],
    )
    # Only the second of the two probes says anything: the first found the server alive.
    assert done.stderr.startswith("kiam health: the server at 127.0.0.1:443 answers, but isn't ready: "), done.stderr
    assert done.stderr.count("kiam health: ") == 1


def test_without_the_capabilities_the_error_names_the_one_that_is_missing(image: Image) -> None:
    script = "dataplane install --dataplane=nftables --host=10.0.0.1 --port=8181 --host-interface=cali+"
    done = run(image, security_context("agent"), ["/kiam", *script.split()])
    assert done.returncode == 1
    # libnftables may have said "Operation not permitted" before, in a line of its own.
    assert done.stderr.splitlines()[-1].startswith("kiam dataplane: "), done.stderr
    assert "NET_ADMIN" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("target", LARGEST)
def test_it_has_no_compiler_and_no_installer_but_libbpfccs(images: Mapping[str, Image], target: str) -> None:
    folders = [images[target].root / name for name in ("usr/bin", "usr/sbin", "usr/local/bin", "opt/kiam/bin")]
    programs = {program.name for folder in folders for program in folder.iterdir()}
    for name in ("gcc", "cc", "clang", "ld", "make", "pip", "pip3", "curl", "wget"):
        assert not any(program == name or program.startswith(f"{name}-") for program in programs), name
    llvm = list((images[target].root / "usr/lib").glob("*/libLLVM*"))
    assert bool(llvm) is (target == "agent-bcc")


@pytest.mark.parametrize("target", LARGEST)
def test_nothing_in_it_gains_rights(images: Mapping[str, Image], target: str) -> None:
    """Set-user-ID programs are Debian's own few, and do nothing where privilege escalation is off."""
    gaining = [
        path
        for folder, _, files in os.walk(images[target].root / "opt")
        for path in (Path(folder) / file for file in files)
        if not path.is_symlink() and path.stat().st_mode & 0o6000
    ]
    assert gaining == []


@pytest.mark.parametrize("target", LARGEST)
def test_its_size(images: Mapping[str, Image], target: str, record_property: Callable[[str, object], None]) -> None:
    size = images[target].size()
    record_property("bytes", size)
    print(f"image {target}: {size / 1e6:.0f} MB")
    assert size < LARGEST[target]
