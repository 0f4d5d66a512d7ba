"""Network namespaces wired like a node and its pods, and what lies behind the node: "aws".

::

    pod eth0 (10.42.0.11/32) --- cali0123456789a  node  eth0 (192.0.2.10) --- eth0 (192.0.2.1)  aws
                                                                              lo: 169.254.169.254, fd00:ec2::254

Instance metadata is outside the node, as on EC2: the node reaches it by a route, and a pod reaches it through the
node's forwarding unless something redirects it. Nothing here touches the machine's own network namespace. Names carry
the owner's process id, so that what a killed run left is found and swept by the next one.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import hashlib
import itertools
import multiprocessing
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from tests.sandbox.process import placed

T = TypeVar("T")

NETNS_DIRECTORY = Path("/run/netns")
PREFIX = "kiam"

NODE_IPV4 = IPv4Address("192.0.2.10")
NODE_IPV6 = IPv6Address("fd42::10")
AWS_IPV4 = IPv4Address("192.0.2.1")
AWS_IPV6 = IPv6Address("fd42::1")
METADATA_IPV4 = IPv4Address("169.254.169.254")
METADATA_IPV6 = IPv6Address("fd00:ec2::254")

CALICO_GATEWAY = IPv4Address("169.254.1.1")
CALICO_MAC = "ee:ee:ee:ee:ee:ee"
CALICO_GATEWAY6 = IPv6Address("fe80::ecee:eeff:feee:eeee")

_numbers = itertools.count(1)
_living: dict[str, NetNs] = {}
_libc = ctypes.CDLL(None, use_errno=True)


def unique_name(what: str) -> str:
    """A name no other run or object has: ``kiam-<pid>-<number>-<what>``."""
    return f"{PREFIX}-{os.getpid()}-{next(_numbers)}-{what}"


def require_root() -> None:
    """Raise PermissionError with one clear line unless this process may make namespaces."""
    if os.geteuid() != 0:
        raise PermissionError("the sandbox makes network namespaces and must run as root; use sudo")


class NetNs:
    """A named network namespace with ``lo`` up. A context manager: leaving it ends its processes and deletes it."""

    def __init__(self, what: str) -> None:
        require_root()
        _prepare()
        self.name = unique_name(what)
        self.path = NETNS_DIRECTORY / self.name
        _living[self.name] = self
        _ip("netns", "add", self.name)
        # Duplicate address detection would keep link-local addresses, and so neighbour discovery, waiting for 1 to 2 s.
        self.sysctl(ipv6__conf__all__accept_dad=0, ipv6__conf__default__accept_dad=0)
        self.ip("link set lo up")

    def __enter__(self) -> NetNs:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill the processes inside and delete the namespace; safe to call twice."""
        if _living.pop(self.name, None) is not None:
            _delete(self.name)

    def run(
        self,
        *argv: str,
        check: bool = True,
        stdin: str | None = None,
        timeout: float = 120.0,
        cgroup: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside and capture its output. With ``check``, a failure is a RuntimeError with its stderr."""
        done = subprocess.run(
            placed(argv, self.name, cgroup), input=stdin, capture_output=True, text=True, timeout=timeout, check=False
        )
        if check and done.returncode:
            raise RuntimeError(
                f"{' '.join(argv)}: exit {done.returncode}: {done.stderr.strip() or done.stdout.strip()}"
            )
        return done

    def popen(self, argv: Sequence[str], cgroup: Path | None = None, **options: Any) -> subprocess.Popen[Any]:
        """Start a command inside; ``options`` go to subprocess.Popen."""
        return subprocess.Popen(placed(argv, self.name, cgroup), **options)

    def call(self, function: Callable[..., T], *arguments: Any, cgroup: Path | None = None) -> T:
        """Call a function in a thread that is inside; sockets it makes stay inside after it has returned.

        With ``cgroup``, which a thread can't enter alone, it is called in a forked process instead: what it returns or
        raises is pickled, and its sockets end with it.
        """
        if cgroup is None:
            return _in_thread(self._inside(function), arguments)
        return _in_process(self._inside(function), arguments, cgroup)

    def _inside(self, function: Callable[..., T]) -> Callable[..., T]:
        def inside(*arguments: Any) -> T:
            with self.path.open() as handle:
                if _libc.setns(handle.fileno(), 0x40000000):  # CLONE_NEWNET
                    raise OSError(ctypes.get_errno(), f"setns {self.name}")
            return function(*arguments)

        return inside

    def ip(self, *commands: str) -> None:
        """Run ``ip`` commands inside, one string each, in one process."""
        _batch(self.name, commands)

    def sysctl(self, **values: object) -> None:
        """Set sysctls under net/; a key is the path with ``__`` for a slash: ``ipv4__ip_forward=1``."""

        def write() -> None:
            for key, value in values.items():
                Path("/proc/sys/net", *key.split("__")).write_text(str(value))

        self.call(write)


def _in_thread(function: Callable[..., T], arguments: Sequence[Any]) -> T:
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(function(*arguments))
        except BaseException as error:  # handed on to the caller's thread
            failure.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def _in_process(function: Callable[..., T], arguments: Sequence[Any], cgroup: Path) -> T:
    forking = multiprocessing.get_context("fork")
    receiver, sender = forking.Pipe(duplex=False)

    def run() -> None:
        try:
            (cgroup / "cgroup.procs").write_text(str(os.getpid()))
            sender.send((True, function(*arguments)))
        except BaseException as error:  # handed on to the caller's process
            sender.send((False, error))
        finally:
            # No interpreter shutdown: the sandbox's own clean-up belongs to the parent.
            os._exit(0)

    process = forking.Process(target=run)
    process.start()
    sender.close()
    try:
        succeeded, result = receiver.recv()
    except EOFError:
        raise RuntimeError("the process inside the namespace ended without an answer") from None
    finally:
        receiver.close()
        process.join()
    if not succeeded:
        assert isinstance(result, BaseException)
        raise result
    outcome: T = result
    return outcome


@dataclass(slots=True)
class PodNet:
    """A pod's namespace and how it is wired to its node."""

    name: str
    netns: NetNs
    address: IPv4Address
    address6: IPv6Address
    interface: str
    """The host side of its veth pair."""


class NodeNet:
    """A node's namespace, the pods of the node, and "aws" behind it. A context manager that removes them all.

    ``cni`` is ``calico`` (routed veths, proxy ARP, 169.254.1.1) or ``bridge`` (kubenet's cbr0).
    """

    def __init__(self, cni: str = "calico") -> None:
        self.cni = cni
        self.pods: dict[str, PodNet] = {}
        self._hosts = itertools.count(11)
        self.node = NetNs("node")
        try:
            self.aws = NetNs("aws")
            self._wire()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> NodeNet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the namespaces with everything in them."""
        for pod in list(self.pods.values()):
            self.remove_pod(pod.name)
        for netns in (self.node, getattr(self, "aws", None)):
            if netns is not None:
                netns.close()

    @property
    def interface_pattern(self) -> str:
        """What ``--host-interface`` has to be for this CNI."""
        return {"calico": "cali+", "bridge": "cbr0"}[self.cni]

    def _wire(self) -> None:
        # The ends must differ in interface index: a veth whose index equals its peer's isn't "urgent" to the kernel
        # (net/core/link_watch.c), and IPv6 would wait up to a second for the link to be seen as up.
        _ip(
            *("link", "add", "eth0", "index", "2", "netns", self.node.name, "type", "veth"),
            *("peer", "eth0", "index", "3", "netns", self.aws.name),
        )
        self.node.sysctl(ipv4__ip_forward=1, ipv6__conf__all__forwarding=1)
        self.node.ip(
            f"address add {NODE_IPV4}/24 dev eth0",
            f"address add {NODE_IPV6}/64 dev eth0 nodad",
            "link set eth0 up",
            f"route add default via {AWS_IPV4}",
            f"route add default via {AWS_IPV6}",
        )
        self.aws.ip(
            f"address add {AWS_IPV4}/24 dev eth0",
            f"address add {AWS_IPV6}/64 dev eth0 nodad",
            f"address add {METADATA_IPV4}/32 dev lo",
            f"address add {METADATA_IPV6}/128 dev lo nodad",
            "link set eth0 up",
            f"route add default via {NODE_IPV4}",
            f"route add default via {NODE_IPV6}",
        )
        if self.cni == "bridge":
            self.node.ip(
                # Of its own, as the CNI bridge plugin gives it one: otherwise it is the lowest of the ports' and
                # changes with them, and pods go on sending to the old one.
                "link add cbr0 address 0a:58:0a:2a:00:01 type bridge",
                "address add 10.42.0.1/24 dev cbr0",
                "address add fd42:10::1/64 dev cbr0 nodad",
                "link set cbr0 up",
            )

    def add_pod(self, name: str, address: IPv4Address | None = None) -> PodNet:
        """Make a pod's namespace and wire it; the address is the next free one of 10.42.0.0/16 unless given."""
        if address is None:
            number = next(self._hosts)
            address = IPv4Address(int(IPv4Address("10.42.0.0")) + number)
        address6 = IPv6Address(int(IPv6Address("fd42:10::")) + (int(address) & 0xFFFF))
        prefix = "cali" if self.cni == "calico" else "veth"
        interface = prefix + hashlib.sha256(f"{name}.{next(_numbers)}".encode()).hexdigest()[:11]
        pod = PodNet(name, NetNs(f"pod-{name}"), address, address6, interface)
        self.pods[name] = pod
        _ip(
            *("link", "add", interface, "netns", self.node.name, "type", "veth"),
            *("peer", "eth0", "netns", pod.netns.name),
        )
        if self.cni == "calico":
            self._wire_calico(pod)
        else:
            self._wire_bridge(pod)
        return pod

    def _wire_calico(self, pod: PodNet) -> None:
        # As the Calico CNI plugin does it: every host side has one MAC and answers ARP for the gateway; the kernel's
        # random delay before a proxied answer (up to 0.8 s) is switched off.
        self.node.sysctl(
            **{
                f"ipv4__conf__{pod.interface}__proxy_arp": 1,
                f"ipv4__neigh__{pod.interface}__proxy_delay": 0,
            }
        )
        self.node.ip(
            f"link set {pod.interface} address {CALICO_MAC} up",
            f"address add {CALICO_GATEWAY6}/64 dev {pod.interface} nodad",
            f"route add {pod.address}/32 dev {pod.interface} scope link",
            f"route add {pod.address6}/128 dev {pod.interface}",
        )
        pod.netns.ip(
            f"address add {pod.address}/32 dev eth0",
            f"address add {pod.address6}/128 dev eth0 nodad",
            "link set eth0 up",
            f"route add {CALICO_GATEWAY} dev eth0 scope link",
            f"route add default via {CALICO_GATEWAY}",
            f"route add default via {CALICO_GATEWAY6} dev eth0",
        )

    def _wire_bridge(self, pod: PodNet) -> None:
        self.node.ip(f"link set {pod.interface} master cbr0 up")
        pod.netns.ip(
            f"address add {pod.address}/24 dev eth0",
            f"address add {pod.address6}/64 dev eth0 nodad",
            "link set eth0 up",
            "route add default via 10.42.0.1",
            "route add default via fd42:10::1",
        )

    def remove_pod(self, name: str) -> None:
        """Delete a pod's namespace; its veth pair goes with it."""
        self.pods.pop(name).netns.close()


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def _batch(netns: str, commands: Sequence[str]) -> None:
    lines = "\n".join(commands)
    done = subprocess.run(
        ["ip", "-n", netns, "-batch", "-"], input=lines + "\n", capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"ip -n {netns} {'; '.join(commands)}: {done.stderr.strip()}")


def _delete(name: str) -> None:
    listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
    for pid in listed.stdout.split():
        # Never ourselves: a thread of ours may be inside for a moment.
        if int(pid) != os.getpid():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def _close_all() -> None:
    for netns in list(_living.values()):
        netns.close()


def _owner(name: str) -> int | None:
    words = name.split("-")
    return int(words[1]) if len(words) > 3 and words[0] == PREFIX and words[1].isdigit() else None


def sweep() -> None:
    """Delete namespaces whose owner is no more, as after a SIGKILL."""
    if not NETNS_DIRECTORY.is_dir():
        return
    for path in NETNS_DIRECTORY.iterdir():
        owner = _owner(path.name)
        if owner is not None and not Path(f"/proc/{owner}").exists():
            _delete(path.name)


_prepared: set[int] = set()


def _prepare() -> None:
    """Once a process: sweep, and make sure that an ordinary end and SIGTERM clean up."""
    if os.getpid() in _prepared:
        return
    _prepared.add(os.getpid())
    sweep()
    atexit.register(_close_all)

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, leave)
