"""A node to verify: pods' interfaces, an agent, the real service behind it, and a cgroup tree of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any

from kiam.dataplane.cgroups import CGROUP_VARIABLE
from kiam.dataplane.contract import WantedState
from kiam.dataplane.registry import load_dataplane
from kiam.netfilter.interfaces import InterfacePattern
from kiam.verify.live.proof import LiveSettings
from kiam.verify.results import CheckResult, Status
from kiam.verify.run import VerifySettings, verify
from tests.sandbox.cgroups import NodeCgroup
from tests.sandbox.netns import METADATA_IPV4, METADATA_IPV6, NODE_IPV4, NetNs, NodeNet

AGENT_PORT = 8181
KIAM = str(Path(sys.executable).with_name("kiam"))


class AgentPaths(BaseHTTPRequestHandler):
    """The path of an agent that verify asks, as conventional kiam's router answers it."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer ``pong``, or 404."""
        if self.path.partition("?")[0] == "/ping":
            self._reply(200, b"pong")
        else:
            self._reply(404, b"")

    def _reply(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing on standard error."""


class RealService(AgentPaths):
    """The real metadata service that wants a session token for everything."""

    def do_GET(self) -> None:
        """Refuse."""
        self._reply(401, b"")


class Listener:
    """An HTTP server on an address of a namespace."""

    def __init__(self, netns: NetNs, address: str, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        class Server(ThreadingHTTPServer):
            address_family = 10 if ":" in address else 2
            daemon_threads = True

            def server_bind(self) -> None:
                # HTTPServer's own looks its host's name up, which takes seconds in a namespace without DNS.
                TCPServer.server_bind(self)
                self.server_name, self.server_port = address, port

        self._server: ThreadingHTTPServer = netns.call(Server, (address, port), handler)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


@dataclass(slots=True)
class Found:
    """The lines of one verification."""

    lines: list[CheckResult]

    def of(self, check: str) -> list[CheckResult]:
        """Those of one check."""
        return [line for line in self.lines if line.check == check]

    def one(self, check: str) -> CheckResult:
        """The only line of a check."""
        (line,) = self.of(check)
        return line

    def but(self, *statuses: Status) -> list[CheckResult]:
        """Those that ended otherwise."""
        return [line for line in self.lines if line.status not in statuses]


class Site:
    """The node. A context manager; ``reset`` takes out what a test has put in."""

    def __init__(self, cni: str = "calico") -> None:
        self._stack = contextlib.ExitStack()
        try:
            self.cgroups = self._stack.enter_context(NodeCgroup())
            before = os.environ.get(CGROUP_VARIABLE)
            # eBPF programs go to this run's own cgroup, not to the machine's root, where other tests are.
            os.environ[CGROUP_VARIABLE] = str(self.cgroups.root)
            self._stack.callback(_restore, before)
            self.net = self._stack.enter_context(NodeNet(cni))
            self.pod = self.net.add_pod("one")
            self.wanted = WantedState(NODE_IPV4, AGENT_PORT, InterfacePattern.parse(self.net.interface_pattern))
            self.agent: Listener | None = None
            self.start_agent()
            for address in (METADATA_IPV4, METADATA_IPV6):
                self._stack.callback(Listener(self.net.aws, str(address), 80, RealService).close)
        except BaseException:
            self.close()
            raise

    @property
    def node(self) -> NetNs:
        """The node's namespace. Whoever goes there works on this site's cgroup, even if another site was made since."""
        os.environ[CGROUP_VARIABLE] = str(self.cgroups.root)
        return self.net.node

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take everything down."""
        if getattr(self, "agent", None) is not None:
            self.stop_agent()
        self._stack.close()

    def start_agent(self) -> None:
        """Listen where the agent does."""
        if self.agent is None:
            self.agent = Listener(self.node, "0.0.0.0", AGENT_PORT, AgentPaths)

    def stop_agent(self) -> None:
        """As if the agent had been killed."""
        if self.agent is not None:
            self.agent.close()
            self.agent = None

    def reset(self) -> None:
        """Take out all rules and programs."""
        self.node.call(load_dataplane("ebpf").remove)
        self.node.run("nft", "flush", "ruleset")
        for program in ("iptables-legacy", "ip6tables-legacy"):
            for table in ("raw", "mangle", "nat", "filter"):
                if f"*{table}" in self.node.run(f"{program}-save").stdout:
                    self.node.run(program, "-t", table, "-F")
                    self.node.run(program, "-t", table, "-X")
        self.node.sysctl(ipv4__ip_forward=1)
        self.start_agent()

    def iptables(self, words: str, tool: str = "iptables-nft") -> None:
        """Run one iptables command on the node, as a shell would read it."""
        self.shell(f"{tool} {words}")

    def by_hand(self, tool: str = "iptables-nft", **changes: str) -> None:
        """Put the documented rule in, perhaps with something wrong about it."""
        part = {
            "verb": "-A",
            "address": "169.254.169.254/32",
            "interface": f"-i {self.wanted.interface}",
            "protocol": "tcp",
            "port": "80",
            "target": f"DNAT --to-destination {NODE_IPV4}:{AGENT_PORT}",
        } | changes
        self.iptables(
            f"-t nat {part['verb']} PREROUTING -d {part['address']} {part['interface']} -p {part['protocol']} "
            f"-m {part['protocol']} --dport {part['port']} -j {part['target']}",
            tool,
        )

    def install(self, dataplane: str, wanted: WantedState | None = None) -> None:
        """Install a dataplane."""
        self.node.call(load_dataplane(dataplane).install, wanted or self.wanted)

    def verify(
        self, dataplane: str = "none", *, live: bool = False, proof: LiveSettings | None = None, **changes: Any
    ) -> Found:
        """Verify the wanted state, perhaps with changes to it."""
        settings = VerifySettings(dataplane, live, proof or LiveSettings())
        given = {"host_address": self.wanted.host_address, "port": AGENT_PORT, "interface": self.wanted.interface}
        return Found(self.node.call(lambda: list(verify({**given, **changes}, settings))))

    def verify_by_itself(self, *, live: bool = False) -> Found:
        """Verify without a flag, as a person does who knows nothing of the node."""
        return Found(self.node.call(lambda: list(verify({}, VerifySettings(live=live)))))

    def shell(self, command: str, programs: Path | None = None) -> None:
        """Run a line of shell on the node, with ``kiam`` on the PATH, ``programs`` ahead; it has to succeed."""
        ahead = f"{programs}:" if programs is not None else ""
        path = f"{ahead}{Path(KIAM).parent}:{os.environ['PATH']}"
        self.node.run("env", f"PATH={path}", "bash", "-ec", command, timeout=300)

    def command(self, *arguments: str) -> tuple[int, dict[str, Any], str]:
        """Run ``kiam dataplane verify --output=json``: exit code, output, standard error."""
        done = self.node.run(*self.command_line(*arguments), "--output=json", check=False, timeout=300)
        return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr

    def command_line(self, *arguments: str) -> list[str]:
        """The command that verifies this node."""
        wanted = self.wanted
        flags = [f"--host={wanted.host_address}", f"--port={wanted.port}", f"--host-interface={wanted.interface}"]
        return [KIAM, "dataplane", "verify", *flags, *arguments]

    def leftovers(self) -> list[str]:
        """What a verification has left behind."""
        links = self.node.run("ip", "-o", "link").stdout.splitlines()
        routes = self.node.run("ip", "route").stdout + self.node.run("ip", "-6", "route").stdout
        neighbours = self.node.run("ip", "neigh").stdout + self.node.run("ip", "-6", "neigh").stdout
        return [
            *(
                line
                for line in links
                if self.pod.interface not in line and re.search(r": (cali|kiam[vt]|tunk|zkiam)", line)
            ),
            *(line for line in (routes + neighbours).splitlines() if re.match(r"198\.1[89]\.|fd6b:", line)),
            *(str(path) for path in self.cgroups.root.rglob("kiamverify-*")),
        ]


def _restore(before: str | None) -> None:
    if before is None:
        os.environ.pop(CGROUP_VARIABLE, None)
    else:
        os.environ[CGROUP_VARIABLE] = before
