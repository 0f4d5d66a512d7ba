"""Rules like those kube-proxy writes, for any number of Services, in its iptables and its nftables mode."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address

FIRST_SERVICE = IPv4Address("10.96.0.1")
FIRST_ENDPOINT = IPv4Address("10.44.0.1")


def _services(number: int) -> Iterator[tuple[str, IPv4Address, IPv4Address]]:
    for index in range(number):
        yield f"{index:016X}", FIRST_SERVICE + index, FIRST_ENDPOINT + index


def iptables_rules(number: int) -> str:
    """Input for ``iptables-restore --noflush``: chains, comments and order as in pkg/proxy/iptables/proxier.go."""
    mark = "-j KUBE-MARK-MASQ"
    lines = [
        "*mangle",
        ":KUBE-IPTABLES-HINT - [0:0]",
        ":KUBE-KUBELET-CANARY - [0:0]",
        ":KUBE-PROXY-CANARY - [0:0]",
        "COMMIT",
        "*nat",
        ":KUBE-SERVICES - [0:0]",
        ":KUBE-NODEPORTS - [0:0]",
        ":KUBE-MARK-MASQ - [0:0]",
        *(f":KUBE-SVC-{name} - [0:0]\n:KUBE-SEP-{name} - [0:0]" for name, _, _ in _services(number)),
        '-I PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
        '-I OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
        "-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000",
    ]
    for name, service, endpoint in _services(number):
        comment = f'-m comment --comment "ns/{name}:http"'
        lines += [
            f'-A KUBE-SERVICES -d {service}/32 -p tcp -m comment --comment "ns/{name}:http cluster IP" '
            f"-m tcp --dport 80 -j KUBE-SVC-{name}",
            f"-A KUBE-SVC-{name} {comment} -j KUBE-SEP-{name}",
            f"-A KUBE-SEP-{name} -s {endpoint}/32 {comment} {mark}",
            f"-A KUBE-SEP-{name} -p tcp {comment} -m tcp -j DNAT --to-destination {endpoint}:8080",
        ]
    ports = '-m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain"'
    lines += [f"-A KUBE-SERVICES {ports} -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS", "COMMIT", ""]
    return "\n".join(lines)


def nftables_rules(number: int) -> str:
    """Input for ``nft -f``: a verdict map by service address and port, as in pkg/proxy/nftables/proxier.go."""
    endpoints = "\n".join(
        f"chain service-{name} {{\n meta l4proto tcp dnat to {endpoint}:8080\n}}"
        for name, _, endpoint in _services(number)
    )
    elements = ", ".join(f"{service} . tcp . 80 : goto service-{name}" for name, service, _ in _services(number))
    return f"""table ip kube-proxy {{
{endpoints}
map service-ips {{
  type ipv4_addr . inet_proto . inet_service : verdict
  elements = {{ {elements} }}
}}
chain services {{
  ip daddr . meta l4proto . th dport vmap @service-ips
}}
chain nat-prerouting {{
  type nat hook prerouting priority dstnat; policy accept
  jump services
}}
chain nat-output {{
  type nat hook output priority -100; policy accept
  jump services
}}
}}
"""
