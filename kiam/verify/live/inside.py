"""Gives the throwaway namespace's end of the veth pair its addresses and routes; runs inside the namespace."""

from __future__ import annotations

import socket

from pyroute2 import IPRoute

INNER = "eth0"
GATEWAY = "169.254.1.1"
GATEWAY6 = "fe80::1"
LINK_SCOPE = 253
IFA_F_NODAD = 2
NUD_PERMANENT = 0x80


def configure(address: str, address6: str, next_hop: str) -> None:
    """Make everything go to ``next_hop``, the MAC address of the host's end or of the bridge.

    Neighbours are written down rather than asked for: no ARP, no proxy ARP, and no address needed on the host's end.
    """
    with IPRoute(groups=0) as pod:
        pod.link("set", index=1, state="up")
        inner = pod.link_lookup(ifname=INNER)[0]
        pod.link("set", index=inner, state="up")
        pod.addr("add", index=inner, address=address, prefixlen=32)
        pod.neigh("add", dst=GATEWAY, lladdr=next_hop, ifindex=inner, state=NUD_PERMANENT)
        pod.route("add", dst=f"{GATEWAY}/32", oif=inner, scope=LINK_SCOPE)
        pod.route("add", dst="default", gateway=GATEWAY, oif=inner)
        if address6:
            _configure6(pod, inner, address6, next_hop)


def _configure6(pod: IPRoute, inner: int, address6: str, next_hop: str) -> None:
    # Without duplicate address detection, which would keep the address from being used for a second or two.
    pod.addr("add", index=inner, address=address6, prefixlen=128, family=socket.AF_INET6, flags=IFA_F_NODAD)
    pod.neigh("add", dst=GATEWAY6, lladdr=next_hop, ifindex=inner, state=NUD_PERMANENT, family=socket.AF_INET6)
    pod.route("add", dst="default", gateway=GATEWAY6, oif=inner, family=socket.AF_INET6)
