"""Our program on the devices by which packets leave the node: tcx since Linux 6.6, a clsact qdisc's filter before.

Either way the device holds the program, so that no process and no bpffs is needed, and it goes with the device.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from kiam.dataplane.ebpf import bpf
from kiam.dataplane.ebpf.node import kernel_lacks
from kiam.dataplane.ebpf.state import PREFIX, UPLINK_HOOK
from kiam.dataplane.egress import find_uplinks
from kiam.netlink import Conversation, Message, RefusedError, read_attributes

_F_BEFORE = 1 << 3
"""linux/bpf.h: ahead of the programs that are there, one of which may end the chain."""
_CLSACT_EGRESS = "ffff:fff3"
"""TC_H_CLSACT and TC_H_MIN_EGRESS, linux/pkt_sched.h."""
_CLSACT_PARENTS = (0xFFFFFFF1, 0xFFFFFFF2, 0xFFFFFFF3)
_NEWTFILTER, _GETTFILTER = 44, 46
"""linux/rtnetlink.h"""
_TCMSG = struct.Struct("=BxxxiIII")
"""struct tcmsg: family, interface, handle, parent, info."""
_TCA_OPTIONS, _TCA_BPF_NAME = 2, 7
_PRIORITY = 1
_ETH_P_ALL = 0x0003
"""linux/if_ether.h; pyroute2 puts it into network byte order."""
_HANDLE_OUR_QDISC = 0x6B01
"""The filter's handle tells whether the qdisc was made for it, and so whether it goes with it."""
_HANDLE_FOREIGN_QDISC = 0x6B02


@dataclass(frozen=True, slots=True)
class Uplink:
    """A device with what of ours is on its egress."""

    index: int
    name: str
    programs: tuple[str, ...] = ()
    """How each is attached, for people."""


@contextmanager
def _routing() -> Iterator[Any]:
    # Imported here, where something is changed: pyroute2 is some 10 MB, which an agent that looks can do without.
    from pyroute2 import IPRoute

    with IPRoute() as routing:
        yield routing


def find_ours() -> list[Uplink]:
    """Every device that has a program of ours on its egress, uplink or not."""
    found = []
    filters = _our_filters()
    for index, name in socket.if_nameindex():
        programs = [f"tcx egress id {identifier}" for identifier in _tcx_programs(index)]
        programs += [f"clsact egress handle {one.handle:#x}" for one in filters if one.index == index]
        if programs:
            found.append(Uplink(index, name, tuple(programs)))
    return found


def attach(program: int) -> None:
    """Put the program on every uplink, in the place of ours that is there, and take it off other devices."""
    wanted = {uplink.index for uplink in find_uplinks()}
    for index in sorted(wanted):
        try:
            if _has_tcx(index):
                _attach_tcx(index, program)
            else:
                _attach_filter(index, program)
        except OSError as error:
            raise kernel_lacks(f"to attach {UPLINK_HOOK.program} ({error.strerror})") from error
    _detach(lambda index: index not in wanted)


def detach_all() -> None:
    """Take all of ours off every device."""
    _detach(lambda _: True)


def _detach(from_device: Any) -> None:
    for index, _ in socket.if_nameindex():
        if from_device(index):
            for identifier in _tcx_programs(index):
                with bpf.closing(bpf.open_program(identifier)) as program, suppress(FileNotFoundError):
                    bpf.detach(index, program, UPLINK_HOOK.attach_type)
    for one in _our_filters():
        if from_device(one.index):
            _delete_filter(one)


# ---- tcx


def _has_tcx(index: int) -> bool:
    try:
        bpf.attached(index, UPLINK_HOOK.attach_type)
    except OSError:
        return False
    return True


def _tcx_programs(index: int) -> list[int]:
    try:
        identifiers = bpf.attached(index, UPLINK_HOOK.attach_type)
    except OSError:
        return []  # before Linux 6.6, or the device is gone
    ours = []
    for identifier in identifiers:
        with suppress(FileNotFoundError), bpf.closing(bpf.open_program(identifier)) as program:
            if bpf.program_info(program).name.startswith(PREFIX):
                ours.append(identifier)
    return ours


def _attach_tcx(index: int, program: int) -> None:
    with ExitStack() as stack:
        old = [stack.enter_context(bpf.closing(bpf.open_program(one))) for one in _tcx_programs(index)]
        if old:
            bpf.attach(index, program, UPLINK_HOOK.attach_type, replace=old[0], flags=0)
        else:
            bpf.attach(index, program, UPLINK_HOOK.attach_type, flags=_F_BEFORE)
        for superfluous in old[1:]:
            bpf.detach(index, superfluous, UPLINK_HOOK.attach_type)


# ---- clsact


@dataclass(frozen=True, slots=True)
class _Filter:
    index: int
    handle: int
    name: str
    """Of its program; empty if it has none."""


def _our_filters() -> list[_Filter]:
    with Conversation(socket.NETLINK_ROUTE) as kernel:
        return [
            one
            for index, _ in socket.if_nameindex()
            for one in _filters(kernel, index, _CLSACT_PARENTS[2])
            if one.name.startswith(PREFIX)
        ]


def _filters(kernel: Conversation, index: int, parent: int) -> list[_Filter]:
    try:
        messages = list(kernel.dump(_GETTFILTER, _TCMSG.pack(socket.AF_UNSPEC, index, 0, parent, 0)))
    except RefusedError as error:
        if error.errno in (errno.EINVAL, errno.ENODEV, errno.ENOENT):
            return []  # no clsact there, or the device is gone
        raise
    found = (_read_filter(message) for message in messages if message.kind == _NEWTFILTER)
    # An entry without a handle describes the chain's priority, not a filter.
    return [one for one in found if one.handle]


def _read_filter(message: Message) -> _Filter:
    _, index, handle, _, _ = _TCMSG.unpack_from(message.data, message.start)
    options = message.attributes(_TCMSG.size).get(_TCA_OPTIONS, b"")
    name = read_attributes(options, 0, len(options)).get(_TCA_BPF_NAME, b"")
    return _Filter(index, handle, name.rstrip(b"\0").decode("utf-8", "replace"))


def _has_clsact(routing: Any, index: int) -> bool:
    return any(one.get_attr("TCA_KIND") == "clsact" for one in routing.get_qdiscs(index))


def _attach_filter(index: int, program: int) -> None:
    ours = [one.handle for one in _our_filters() if one.index == index]
    with _routing() as routing:
        if ours:
            handle = ours[0]
        elif _has_clsact(routing, index):
            handle = _HANDLE_FOREIGN_QDISC
        else:
            handle = _HANDLE_OUR_QDISC
            routing.tc("add", "clsact", index)
        routing.tc(
            "replace-filter",
            "bpf",
            index,
            handle,
            parent=_CLSACT_EGRESS,
            prio=_PRIORITY,
            protocol=_ETH_P_ALL,
            fd=program,
            name=UPLINK_HOOK.program,
            direct_action=True,
        )


def _delete_filter(one: _Filter) -> None:
    with _routing() as routing:
        routing.tc(
            "del-filter",
            "bpf",
            one.index,
            one.handle,
            parent=_CLSACT_EGRESS,
            prio=_PRIORITY,
            protocol=_ETH_P_ALL,
        )
        with Conversation(socket.NETLINK_ROUTE) as kernel:
            others = [other for parent in _CLSACT_PARENTS for other in _filters(kernel, one.index, parent)]
        if one.handle == _HANDLE_OUR_QDISC and not others:
            routing.tc("del", "clsact", one.index)
