"""A node in a box: pods, node, Kubernetes API, STS and instance metadata on one machine, with kiam's real processes.

Everything is real but the cluster: packets cross veth pairs and the kernel's own redirection, ``kiam server`` and
``kiam agent`` are the installed commands, pods use boto3 or plain HTTP from inside their namespaces.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from tests.sandbox import kubeapi
from tests.sandbox.aws import ROLE_BASE_ARN, AwsProcess
from tests.sandbox.cgroups import NodeCgroup
from tests.sandbox.kubeapi import KubeApiProcess, write_kubeconfig
from tests.sandbox.netns import (
    AWS_IPV4,
    METADATA_IPV4,
    METADATA_IPV6,
    NETNS_DIRECTORY,
    NODE_IPV4,
    NODE_IPV6,
    PREFIX,
    NetNs,
    NodeNet,
    PodNet,
)
from tests.sandbox.pki import Pki, make_pki
from tests.sandbox.process import Process, wait_until

KIAM = (sys.executable, "-m", "kiam")
AGENT_PORT = 8181
SERVER_PORT = 9610
METRICS_PORT = 9620
"""The server's; the agent's is the next."""
CREDENTIALS = "/latest/meta-data/iam/security-credentials/"

POD_ENVIRONMENT = {
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    "AWS_REGION": "us-east-1",
    "AWS_DEFAULT_REGION": "us-east-1",
}
"""What a pod's manifest would set, and no more: above all no patience that clients don't have by themselves."""

BOTO3_PROGRAM = """
import json, boto3
session = boto3.Session()
credentials = session.get_credentials()
if credentials is None:
    print(json.dumps({"error": "no credentials"}))
else:
    frozen = credentials.get_frozen_credentials()
    identity = session.client("sts").get_caller_identity()
    print(json.dumps({"method": credentials.method, "access_key_id": frozen.access_key, "arn": identity["Arn"]}))
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer; names of headers in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode()

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


def fetch(
    host: str,
    port: int,
    path: str,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    timeout: float = 20.0,
) -> Answer:
    """One HTTP request on a connection of its own, the path exactly as given. Raises OSError."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request(method, path, body=body, headers=dict(headers or {}))
        response = connection.getresponse()
        named = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, named, response.read())
    finally:
        connection.close()


class Pod:
    """A pod of the box: its namespace and what can be done from inside it."""

    def __init__(self, box: NodeInABox, name: str, namespace: str, net: PodNet, uid: str | None = None) -> None:
        """``uid``: for a pod whose sandbox is made anew; otherwise it gets one of its own."""
        self.box, self.name, self.namespace, self.net = box, name, namespace, net
        self.uid = uid or str(uuid5(NAMESPACE_OID, net.interface))
        """In the form that the API server gives."""

    @property
    def address(self) -> str:
        """Its IPv4 address."""
        return str(self.net.address)

    def ask(
        self,
        path: str,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        host: str = str(METADATA_IPV4),
        port: int = 80,
        timeout: float = 20.0,
    ) -> Answer:
        """Ask the metadata address over HTTP, from inside. Raises OSError if nothing answers."""
        cgroup = self.box.pod_cgroup(self) if self.box.needs_cgroups else None
        return self.net.netns.call(fetch, host, port, path, method, headers, body, timeout, cgroup=cgroup)

    def ask_as(self, other: Pod, path: str) -> Answer:
        """Ask the metadata address from another pod's address, by a process of this pod's."""
        cgroup = self.box.pod_cgroup(self)
        return other.net.netns.call(fetch, str(METADATA_IPV4), 80, path, cgroup=cgroup)

    def ask_ipv6(self, path: str, timeout: float = 20.0) -> Answer:
        """Ask the IPv6 metadata address."""
        return self.ask(path, host=str(METADATA_IPV6), timeout=timeout)

    def role(self) -> Answer:
        """Which role am I?"""
        return self.ask(CREDENTIALS)

    def credentials(self, role: str) -> Answer:
        """Credentials of a role."""
        return self.ask(CREDENTIALS + role)

    def boto3(self) -> dict[str, str]:
        """A boto3 session in a process inside: ``method``, ``access_key_id`` and ``arn``, or ``error``."""
        done = self.run([sys.executable, "-c", BOTO3_PROGRAM], {"AWS_ENDPOINT_URL_STS": self.box.aws.sts_url})
        if done.returncode:
            return {"error": done.stderr.strip().splitlines()[-1]}
        return dict(json.loads(done.stdout))

    def start(self, argv: Sequence[str], environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start a program inside, with the environment of a pod's and nothing of AWS's from this process's own."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
        return self.net.netns.popen(
            argv,
            cgroup=self.box.pod_cgroup(self),
            env=inherited | POD_ENVIRONMENT | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )

    def run(
        self, argv: Sequence[str], environment: Mapping[str, str] | None = None, timeout: float = 120.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a program inside to its end."""
        with self.start(argv, environment) as process:
            try:
                output, errors = process.communicate(timeout=timeout)
            finally:
                process.kill()
        return subprocess.CompletedProcess(list(argv), process.returncode, output, errors)


class NodeInABox:
    """The whole sandbox. A context manager; ``start_server`` and ``start_agent`` start kiam itself.

    ``dataplane`` is what the agent is started with; ``none`` installs nothing. ``needs_cgroups``: even a single request
    has to come out of its pod's cgroup, as the dataplane or ``--pod-uid`` goes by it.
    """

    def __init__(self, dataplane: str = "iptables", cni: str = "calico", *, needs_cgroups: bool = False) -> None:
        self.dataplane = dataplane
        self.needs_cgroups = needs_cgroups or dataplane == "ebpf"
        self._cni = cni
        self._stack = ExitStack()
        self._started = 0
        self.pods: dict[str, Pod] = {}
        self.server: Process | None = None
        self.agent: Process | None = None
        self.server_flags: tuple[str, ...] = ()
        """The further flags that the server was last started with."""
        self.agent_flags: tuple[str, ...] = ()

    def __enter__(self) -> NodeInABox:
        with self._stack:
            self.directory = Path(tempfile.mkdtemp(prefix="kiam-box-"))
            self._stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
            self.cgroup = self._stack.enter_context(NodeCgroup())
            self.net = self._stack.enter_context(NodeNet(self._cni))
            names = ("localhost", "127.0.0.1", str(NODE_IPV4))
            self.pki: Pki = make_pki(self.directory / "pki", names, ("agent", "node-1"))
            aws = AwsProcess(
                self.directory / "aws",
                netns=self.net.aws.name,
                sts_host=str(AWS_IPV4),
                sts_port=8000,
                imds_hosts=(str(METADATA_IPV4), str(METADATA_IPV6)),
                imds_port=80,
            )
            self.aws = self._stack.enter_context(aws)
            api = KubeApiProcess(self.directory / "api", netns=self.net.aws.name, host=str(AWS_IPV4), port=6443)
            self.api = self._stack.enter_context(api)
            self.kubeconfig = write_kubeconfig(self.directory / "kubeconfig", self.api.url)
            self._stack.callback(self.stop_kiam)
            self._opened = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    @property
    def node(self) -> NetNs:
        """The node's own namespace."""
        return self.net.node

    def ask_from_host(self, path: str, method: str = "GET", headers: Mapping[str, str] | None = None) -> Answer:
        """Ask instance metadata as the host's own processes do."""
        cgroup = self.cgroup.system if self.needs_cgroups else None
        return self.node.call(fetch, str(METADATA_IPV4), 80, path, method, headers, cgroup=cgroup)

    def ask_agent(self, path: str, timeout: float = 20.0) -> Answer:
        """Ask the agent on the node's address, from the node."""
        return self.node.call(fetch, str(NODE_IPV4), AGENT_PORT, path, "GET", None, None, timeout)

    @property
    def environment(self) -> dict[str, str]:
        """Makes kiam's own processes take this box's cgroup for the machine's, and leave a traceback if they crash."""
        return {"KIAM_EBPF_CGROUP": str(self.cgroup.root), "PYTHONFAULTHANDLER": "1"}

    def leftovers(self) -> list[str]:
        """What of this box still exists; after leaving it, nothing should."""
        left = [f"namespace {path.name}" for path in NETNS_DIRECTORY.glob(f"{PREFIX}-{os.getpid()}-*")]
        left += [f"{path}" for path in (self.directory, self.cgroup.root) if path.exists()]
        return left + _processes_with(str(self.directory))

    # ---- the cluster

    def add_namespace(self, name: str, permitted: str | None = ".*") -> None:
        """Make or change a Namespace."""
        self.api.apply(kubeapi.namespace(name, permitted))

    def add_pod(
        self,
        name: str,
        role: str | None = None,
        namespace: str = "default",
        annotations: Mapping[str, str] | None = None,
        known: bool = True,
    ) -> Pod:
        """Make a pod: its namespace and veth pair and, if ``known``, the Pod object."""
        pod = Pod(self, name, namespace, self.net.add_pod(name))
        self.pods[name] = pod
        if known:
            self.announce(pod, role, annotations)
        return pod

    def announce(
        self,
        pod: Pod,
        role: str | None = None,
        annotations: Mapping[str, str] | None = None,
        phase: str = "Running",
        address: str | None = None,
    ) -> float:
        """Make or change the Pod object of a pod; when, as time.monotonic() has it."""
        return self.api.apply(
            kubeapi.pod(
                pod.name,
                address or pod.address,
                role,
                namespace=pod.namespace,
                annotations=annotations,
                phase=phase,
                host_address=str(NODE_IPV4),
                addresses=[str(pod.net.address6)],
                uid=pod.uid,
            )
        )

    def schedule(self, pod: Pod, role: str | None = None, annotations: Mapping[str, str] | None = None) -> float:
        """Make the Pod object as it is once it is scheduled, without an address; when, as time.monotonic() has it."""
        return self.api.apply(
            kubeapi.pod(
                pod.name,
                None,
                role,
                namespace=pod.namespace,
                annotations=annotations,
                phase="Pending",
                host_address=str(NODE_IPV4),
                uid=pod.uid,
            )
        )

    def remove_pod(self, pod: Pod) -> None:
        """Delete the Pod object and the pod."""
        self.api.delete("pods", pod.name, pod.namespace)
        self.net.remove_pod(pod.name)
        self.pods.pop(pod.name)

    def pod_cgroup(self, pod: Pod) -> Path:
        """The pod's cgroup below kubepods."""
        return self.cgroup.pod(pod.uid)

    def events(self, pod: Pod) -> list[dict[str, Any]]:
        """The Events about a pod."""
        return [event for event in self.api.events() if event["involvedObject"]["name"] == pod.name]

    # ---- kiam

    def start_server(
        self, *flags: str, wait: bool = True, environment: Mapping[str, str] | None = None, cpus: set[int] | None = None
    ) -> Process:
        """Start ``kiam server`` on the node, in place of one that ran before; further flags override these."""
        if self.server is not None:
            self.server.stop()
        self.server_flags = flags
        self.server = self.start_replica(*flags, environment=environment, cpus=cpus)
        if wait:
            self.wait_for_server()
        return self.server

    def start_replica(
        self, *flags: str, environment: Mapping[str, str] | None = None, cpus: set[int] | None = None
    ) -> Process:
        """Start one more ``kiam server``, which the caller ends; its flags have to give it ports of its own."""
        files = self.pki.server
        return self._start(
            "server",
            *("--cert", str(files.cert), "--key", str(files.key), "--ca", str(files.ca)),
            *("--bind", f"0.0.0.0:{SERVER_PORT}", "--kubeconfig", str(self.kubeconfig)),
            *("--prometheus-listen-addr", f"0.0.0.0:{METRICS_PORT}"),
            *([] if any("role-base-arn" in flag for flag in flags) else ["--role-base-arn", ROLE_BASE_ARN]),
            *flags,
            environment={**self.aws.environment, **(environment or {})},
            cpus=cpus,
        )

    def start_agent(
        self, *flags: str, wait: bool = True, cpus: set[int] | None = None, hosts: Sequence[str] = ()
    ) -> Process:
        """Start ``kiam agent`` on the node, in place of one that ran before; further flags override these.

        ``hosts``: addresses that "localhost" has for it alone, in a mount namespace with an /etc/hosts of its own.
        """
        if self.agent is not None:
            self.agent.stop()
        files = self.pki.agent
        self.agent_flags = flags
        # One that was killed can't have taken it away.
        self.agent_ready.unlink(missing_ok=True)
        self.agent = self._start(
            "agent",
            *("--cert", str(files.cert), "--key", str(files.key), "--ca", str(files.ca)),
            *("--host", str(NODE_IPV4), "--port", str(AGENT_PORT), "--host-interface", self.net.interface_pattern),
            *("--server-address", f"localhost:{SERVER_PORT}"),
            *("--prometheus-listen-addr", f"0.0.0.0:{METRICS_PORT + 1}"),
            *("--ready-file", str(self.agent_ready)),
            *self.dataplane_flags(),
            *flags,
            cpus=cpus,
            wrapper=self._with_hosts(hosts),
        )
        if wait:
            self.wait_for_agent()
        return self.agent

    @property
    def agent_ready(self) -> Path:
        """Exists while the agent serves."""
        return self.directory / "agent-ready"

    def dataplane_flags(self) -> list[str]:
        """Flags of the agent that choose the box's dataplane."""
        return [] if self.dataplane == "none" else [f"--dataplane={self.dataplane}", f"--host6={NODE_IPV6}"]

    def _start(
        self,
        command: str,
        *flags: str,
        environment: Mapping[str, str] | None = None,
        cpus: set[int] | None = None,
        wrapper: Sequence[str] = (),
    ) -> Process:
        self._started += 1
        return Process(
            [*wrapper, *KIAM, command, *flags],
            self.directory / f"{command}-{self._started}.log",
            netns=self.node.name,
            cgroup=self.cgroup.system,
            env={**self.environment, **(environment or {})},
            cpus=cpus,
        )

    def _with_hosts(self, addresses: Sequence[str]) -> list[str]:
        if not addresses:
            return []
        file = self.directory / "hosts"
        file.write_text("".join(f"{address} localhost\n" for address in addresses))
        return ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(file)]

    def kiam(self, *arguments: str, timeout: float = 120.0) -> Any:
        """Run any other ``kiam`` command on the node to its end; a CompletedProcess."""
        words = [f"{name}={value}" for name, value in self.environment.items()]
        command = ("env", *words, *KIAM, *arguments)
        return self.node.run(*command, check=False, timeout=timeout, cgroup=self.cgroup.system)

    def health(self, *flags: str) -> int:
        """``kiam health`` on the node: its exit code."""
        files = self.pki.agent
        tls = ("--cert", str(files.cert), "--key", str(files.key), "--ca", str(files.ca))
        return int(self.kiam("health", *tls, "--server-address", f"localhost:{SERVER_PORT}", *flags).returncode)

    def wait_for_server(self, timeout: float = 60.0) -> None:
        """Wait until the server says that it is ready."""
        assert self.server is not None
        server = self.server

        def ready() -> bool:
            if server.returncode is not None:
                raise RuntimeError(f"kiam server ended with {server.returncode}:\n{server.output()[-4000:]}")
            return self.health("--timeout=5s", "--gateway-timeout-creation=5s") == 0

        self._wait(server, ready, "kiam server to be ready", timeout)

    def wait_for_agent(self, timeout: float = 60.0) -> None:
        """Wait until the agent serves (and so has its dataplane in place)."""
        assert self.agent is not None
        agent = self.agent

        def serving() -> bool:
            if agent.returncode is not None:
                raise RuntimeError(f"kiam agent ended with {agent.returncode}:\n{agent.output()[-4000:]}")
            return self.agent_ready.exists()

        self._wait(agent, serving, "kiam agent to serve", timeout)

    @staticmethod
    def _wait(process: Process, condition: Any, what: str, timeout: float) -> None:
        try:
            wait_until(condition, what, timeout)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; it wrote:\n{process.output()[-4000:]}") from None

    def metrics(self, part: str) -> str:
        """The ``/metrics`` page of ``server`` or ``agent``."""
        port = METRICS_PORT + (part == "agent")
        return self.node.call(fetch, "127.0.0.1", port, "/metrics").text

    def stop_kiam(self) -> None:
        """End agent and server, and take the dataplane out if it would stay."""
        for process in (self.agent, self.server):
            if process is not None:
                process.stop()
        self.agent = self.server = None


def _processes_with(text: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if text.encode() in path.read_bytes():
                found.append(f"process {path.parent.name}")
    return found


def needs_root() -> str | None:
    """Why the sandbox can't run here, as one line; None if it can."""
    if os.geteuid() != 0:
        return "this needs root: it makes network namespaces and redirects packets inside them; run it with sudo"
    missing = [tool for tool in ("ip", "nsenter", "iptables", "nft") if shutil.which(tool) is None]
    if missing:
        return f"these programs are missing: {', '.join(missing)}; 'make setup' installs them"
    return None
