"""What a pod's process does, told by lines of JSON on standard input; standard library only, started in the pod.

A request is ``[function, argument, ...]``, an answer ``{"value": ...}`` or ``{"error": "ECONNREFUSED"}``.
"""

from __future__ import annotations

import ctypes
import errno
import json
import socket
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any

TIMEOUT = 1.0
IPPROTO_MPTCP = 262
ETH_P_IP = 0x0800
ETH_P_IPV6 = 0x86DD
TUNNEL_ID = 7
CONNECTIONS: dict[str, socket.socket] = {}
LOAD: dict[str, Any] = {}


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _connect(address: str, port: int, timeout: float) -> socket.socket:
    return _abortive(socket.create_connection((address, port), timeout=timeout))


def _abortive(connection: socket.socket) -> socket.socket:
    # Closing resets, and leaves nothing behind that would be sent again and be counted in another test.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return connection


def _ask(connection: socket.socket) -> dict[str, Any]:
    connection.sendall(b"who\n")
    return _read(connection)


def _read(connection: socket.socket) -> dict[str, Any]:
    line = b""
    while not line.endswith(b"\n"):
        part = connection.recv(4096)
        if not part:
            raise ConnectionResetError(errno.ECONNRESET, "closed")
        line += part
    answer: dict[str, Any] = json.loads(line)
    return answer


def open_connection(name: str, address: str, port: int, kind: str = "tcp") -> dict[str, Any]:
    """Connect, keep the connection under that name, and say what the process sees of it."""
    protocol = IPPROTO_MPTCP if kind == "mptcp" else 0
    connection = _abortive(socket.socket(_family(address), socket.SOCK_STREAM, protocol))
    connection.settimeout(TIMEOUT)
    if kind == "fastopen":
        connection.settimeout(None)  # or the connection goes on by itself and sendto fails with EINPROGRESS
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 1, 0))
        connection.sendto(b"who\n", socket.MSG_FASTOPEN, (address, port))
        connection.settimeout(TIMEOUT)
    else:
        connection.connect((address, port))
    CONNECTIONS[name] = connection
    answer = _read(connection) if kind == "fastopen" else _ask(connection)
    return {**answer, "own": connection.getsockname()[0], "peer_seen": connection.getpeername()[0]}


def make_mptcp_socket() -> None:
    """Fails where the kernel has no MPTCP."""
    socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP).close()


def ask(name: str) -> dict[str, Any]:
    """Ask once more on a kept connection."""
    return _ask(CONNECTIONS[name])


def close(name: str) -> None:
    """Close a kept connection."""
    CONNECTIONS.pop(name).close()


def who(address: str, port: int = 80, kind: str = "tcp") -> dict[str, Any]:
    """Connect, ask once, close."""
    answer = open_connection("once", address, port, kind)
    close("once")
    return answer


def try_connect(address: str, port: int) -> None:
    """Send the first packet of a connection, and don't wait long for an answer."""
    with _connect(address, port, 0.1):
        pass


def many(address: str, port: int, number: int) -> dict[str, int]:
    """So many connections, all open together; how many each service answered."""
    services: dict[str, int] = {}
    everyone = threading.Barrier(number)

    def one() -> None:
        try:
            with _connect(address, port, 10) as connection:
                everyone.wait(10)
                service = _ask(connection)["service"]
        except OSError as error:
            service = errno.errorcode.get(error.errno or 0, str(error))
        services[service] = services.get(service, 0) + 1

    threads = [threading.Thread(target=one) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return services


def start_load(address: str, port: int, threads: int) -> None:
    """Connect, ask and close again and again, in so many threads."""
    stop = threading.Event()
    services: dict[str, int] = {}

    def run() -> None:
        while not stop.is_set():
            try:
                with _connect(address, port, 5) as connection:
                    service = _ask(connection)["service"]
            except OSError as error:
                service = errno.errorcode.get(error.errno or 0, str(error))
            services[service] = services.get(service, 0) + 1
            time.sleep(0.001)

    workers = [threading.Thread(target=run) for _ in range(threads)]
    for worker in workers:
        worker.start()
    LOAD.update(stop=stop, workers=workers, services=services)


def load_so_far() -> dict[str, int]:
    """How many connections of the load each service has answered."""
    return dict(LOAD["services"])


def stop_load() -> dict[str, int]:
    """End the load; how many connections each service answered."""
    LOAD["stop"].set()
    for worker in LOAD["workers"]:
        worker.join()
    return dict(LOAD["services"])


def datagram(address: str, port: int) -> None:
    """Send a UDP datagram."""
    with socket.socket(_family(address), socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", (address, port))


def datagram_connected(address: str, port: int) -> None:
    """Send a UDP datagram after connect."""
    with socket.socket(_family(address), socket.SOCK_DGRAM) as sender:
        sender.connect((address, port))
        sender.send(b"x")


def ping(address: str) -> None:
    """Send an ICMP echo request."""
    six = ":" in address
    protocol = socket.getprotobyname("ipv6-icmp") if six else socket.IPPROTO_ICMP
    header = struct.pack("!BBHHH", 128 if six else 8, 0, 0, 1, 1)
    checksum = 0 if six else _checksum(header)  # the kernel fills in ICMPv6's
    with socket.socket(_family(address), socket.SOCK_RAW, protocol) as raw:
        raw.sendto(header[:2] + struct.pack("!H", checksum) + header[4:], (address, 0))


def _checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total


FLAGS = {"fin": 1, "syn": 2, "rst": 4, "ack": 16}


def _segment(
    source: str,
    address: str,
    port: int,
    flags: str,
    payload: bytes,
    good_checksum: bool,
    source_port: int = 40000,
) -> bytes:
    bits = sum(FLAGS[flag] for flag in flags.split("+"))
    header = struct.pack("!HHIIBBHHH", source_port, port, 1, 1, 5 << 4, bits, 1000, 0, 0)
    family = _family(address)
    ends = socket.inet_pton(family, source) + socket.inet_pton(family, address)
    length = len(header) + len(payload)
    tail = struct.pack("!IHBB", length, 0, 0, 6) if family == socket.AF_INET6 else struct.pack("!BBH", 0, 6, length)
    checksum = _checksum(ends + tail + header + payload) ^ (0 if good_checksum else 0x1234)
    return header[:16] + struct.pack("!H", checksum) + header[18:] + payload


def raw_segment(source: str, address: str, port: int, flags: str, good_checksum: bool = True) -> None:
    """Send a TCP segment that no connect made, through a raw socket (capability NET_RAW)."""
    segment = _segment(source, address, port, flags, b"GET / HTTP/1.0\r\n\r\n", good_checksum)
    with socket.socket(_family(address), socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
        raw.sendto(segment, (address, 0))


def _packet(source: str, address: str, port: int, flags: str, source_port: int = 40000) -> tuple[int, bytes]:
    segment = _segment(source, address, port, flags, b"GET / HTTP/1.0\r\n\r\n", True, source_port)
    if ":" in address:
        ends = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, address)
        return ETH_P_IPV6, struct.pack("!IHBB", 6 << 28, len(segment), 6, 64) + ends + segment
    ends = socket.inet_aton(source) + socket.inet_aton(address)
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(segment), 1, 0, 64, 6, 0) + ends
    return ETH_P_IP, header[:10] + struct.pack("!H", _checksum(header)) + header[12:] + segment


def tunnelled(kind: str, endpoint: str, mac: str, source: str, address: str, source_port: int = 40000) -> None:
    """Send a SYN for port 80 of ``address`` inside a tunnel's packet to ``endpoint``; ``mac``: the far end's."""
    protocol, packet = _packet(source, address, 80, "syn", source_port)
    frame = bytes.fromhex(mac.replace(":", "")) + bytes.fromhex("0a0000000099") + struct.pack("!H", protocol) + packet
    if kind == "vxlan":  # RFC 7348
        _send_datagram(endpoint, 8472, struct.pack("!II", 0x08 << 24, TUNNEL_ID << 8) + frame)
    elif kind == "geneve":  # RFC 8926
        _send_datagram(endpoint, 6081, struct.pack("!HHI", 0, 0x6558, TUNNEL_ID << 8) + frame)
    elif kind == "gre":  # RFC 2784
        _send_raw(endpoint, socket.IPPROTO_GRE, struct.pack("!HH", 0, protocol) + packet)
    elif kind == "ip":  # RFC 2003 and 4213: IPIP, sit and ip6tnl
        _send_raw(endpoint, socket.IPPROTO_IPV6 if protocol == ETH_P_IPV6 else socket.IPPROTO_IPIP, packet)
    else:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind(("eth0", 0))
            tag = 0 if kind == "vlan 0" else TUNNEL_ID
            raw.send(frame[:12] + struct.pack("!HH", 0x8100, tag) + frame[12:])


def _send_datagram(address: str, port: int, payload: bytes) -> None:
    with socket.socket(_family(address), socket.SOCK_DGRAM) as sender:
        sender.sendto(payload, (address, port))


def _send_raw(address: str, protocol: int, payload: bytes) -> None:
    with socket.socket(_family(address), socket.SOCK_RAW, protocol) as raw:
        raw.sendto(payload, (address, 0))


def packet_socket_segment(source: str, address: str, port: int, flags: str, interface: str, gateway_mac: str) -> None:
    """Send a TCP segment, IP header and all, through a packet socket, which skips the pod's own IP layer."""
    protocol, packet = _packet(source, address, port, flags)
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, protocol) as raw:
        raw.sendto(packet, (interface, protocol, 0, 0, bytes.fromhex(gateway_mac.replace(":", ""))))


def fragments(source: str, address: str) -> None:
    """Send a UDP datagram in two fragments, the second of which has no ports to look at."""
    payload = struct.pack("!HHHH", 40000, 123, 8 + 16, 0) + b"x" * 16
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        for offset, part in ((0, payload[:16]), (2, payload[16:])):
            more = 0x2000 if offset == 0 else 0
            ends = socket.inet_aton(source) + socket.inet_aton(address)
            header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(part), 77, more | offset, 64, 17, 0) + ends
            raw.sendto(header + part, (address, 0))


def sysctl(name: str, value: str) -> None:
    """Set a sysctl of this network namespace."""
    Path("/proc/sys/net", name).write_text(value)


def main() -> None:
    """Answer requests until standard input ends."""
    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL: not to outlive a killed test
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        answer: dict[str, Any]
        try:
            answer = {"value": globals()[name](*arguments)}
        except TimeoutError:
            answer = {"error": "ETIMEDOUT"}
        except OSError as error:
            answer = {"error": errno.errorcode.get(error.errno or 0, str(error))}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
