"""Running iptables' programs, the one place where they are started: which are there, and what their failures mean."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from kiam.errors import ErrorKind, UserError
from kiam.netfilter.interfaces import IptablesBackend
from kiam.netfilter.iptables_listing import parse_tables
from kiam.netfilter.model import NO_TABLE, Ruleset, Table
from kiam.pauses import scattered

PACKAGE = "iptables"
"""Of the distribution, in which the programs are."""
LOCK_WAIT_SECONDS = 5
"""What one program waits for the xtables lock (``-w``)."""
LOCK_BUDGET_SECONDS = 30.0
"""How long to go on trying: kube-proxy holds the lock for seconds on a node with tens of thousands of rules."""

_NET = "/proc/thread-self/net"
"""Not /proc/net, which is the main thread's network namespace."""
INSTALL = (
    "install the package iptables on the node or in the image (apt-get install iptables, dnf install iptables-nft)"
)
_INCOMPATIBLE = re.compile(r"^# Table `(\w+)' is incompatible", re.MULTILINE)


class LockHeldError(Exception):
    """Another program held the xtables lock for the whole wait."""


class RulesChangedError(Exception):
    """A rule that was to be deleted had gone meanwhile: read the rules again and start over."""


@dataclass(frozen=True, slots=True)
class Programs:
    """The programs of one backend and one address family."""

    backend: IptablesBackend
    ipv6: bool
    list_program: str
    save_program: str
    restore_program: str

    @property
    def tool(self) -> str:
        """What people call them."""
        return tool_name(self.backend, self.ipv6)

    def save_text(self) -> str:
        """What the save program prints, with counters. Makes no table (``-t`` would, with the legacy backend)."""
        done = _run([self.save_program, "--counters"])
        if done.returncode:
            raise failure(self.save_program, done.stderr)
        return done.stdout

    def save(self) -> Ruleset:
        """All tables that are there, with counters; none is made. Raises UserError for one it can't read."""
        text = self.save_text()
        for table in _INCOMPATIBLE.findall(text):
            if table in ("nat", "mangle"):
                raise UserError(
                    f"the table {table} holds rules written with nft that {self.save_program} can't read: "
                    "use --dataplane=nftables, or --iptables-backend=legacy"
                )
        return parse_tables(text, self.tool)

    def chains(self, table: str, *chains: str) -> Table:
        """Some chains of a table with counters, without the rest of it; none where the first isn't there."""
        listed: list[str] = []
        for chain in chains:
            # Chain by chain, since -S without one prints the table whole.
            done = _run([self.list_program, "-w", str(LOCK_WAIT_SECONDS), "-t", table, "-v", "-S", chain])
            if done.returncode == 0:
                listed.append(done.stdout)
            elif chain == chains[0]:
                if "Permission denied" in done.stderr or "Operation not permitted" in done.stderr:
                    raise failure(self.list_program, done.stderr)
                break
        return parse_tables("\n".join(listed), self.tool, table).get(table, NO_TABLE)

    def restore(self, script: str) -> None:
        """Apply a script, each table of it in one step.

        Raises RulesChangedError when a rule it deletes isn't there, UserError otherwise.
        """
        until = time.monotonic() + LOCK_BUDGET_SECONDS
        for pause in scattered(0.05, 1.0):
            try:
                self._restore_once(script)
                return
            except LockHeldError as error:
                if time.monotonic() >= until:
                    raise UserError(
                        f"another program has held the xtables lock for {LOCK_BUDGET_SECONDS:.0f} s",
                        f"see which with 'fuser -v {os.environ.get('XTABLES_LOCKFILE', '/run/xtables.lock')}', and try "
                        "again",
                        ErrorKind.BUSY,
                    ) from error
            time.sleep(pause)

    def _restore_once(self, script: str) -> None:
        done = _run([self.restore_program, "-w", str(LOCK_WAIT_SECONDS), "--noflush", "--counters"], script)
        if done.returncode == 0:
            return
        if "xtables lock" in done.stderr:
            raise LockHeldError
        if _rules_changed(done.stderr, script):
            raise RulesChangedError(_first_line(done.stderr))
        raise failure(self.restore_program, done.stderr)


def _rules_changed(stderr: str, script: str) -> bool:
    # iptables-nft names the step that the kernel refused at the end; both name a line that didn't fit what they read.
    if re.search(r"\b(RULE_DELETE|CHAIN_USER_ADD|CHAIN_USER_DEL|CHAIN_DEL) failed", stderr):
        return True
    failed = re.search(r"line (\d+) failed", stderr)
    lines = script.splitlines()
    return failed is not None and int(failed[1]) <= len(lines) and lines[int(failed[1]) - 1] != "COMMIT"


def _run(argv: list[str], script: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, input=script, capture_output=True, text=True, check=False)


def _first_line(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip() and not line.startswith("#")]
    return lines[0] if lines else "it said nothing"


def failure(program: str, stderr: str) -> UserError:
    """One line for what an iptables program complained of, with what to do about it."""
    line = _first_line(stderr)
    if "Permission denied" in stderr or "Operation not permitted" in stderr:
        return UserError(
            "changing iptables rules needs root and the capability NET_ADMIN: use sudo, or add NET_ADMIN to the "
            f"container ({line})"
        )
    if missing := re.search(r"[Tt]able `?(\w+)'?.*(?:do you need to insmod|does not exist)", stderr):
        return UserError(
            f"the kernel has no iptables table {missing[1]}: run 'modprobe {program.split('-')[0][:-1]}_{missing[1]}' "
            f"on the node ({line})"
        )
    if missing := re.search(r"(?:Couldn't load (?:match|target)|Extension) `?(\w+)", stderr):
        return UserError(f"iptables lacks {missing[1]}: run 'modprobe xt_{missing[1]}' on the node ({line})")
    return UserError(f"{program} failed: {line}")


def tool_name(backend: IptablesBackend, ipv6: bool) -> str:
    """What people call the programs of that backend and address family: ``iptables-nft``, ``ip6tables-legacy``..."""
    return f"{'ip6tables' if ipv6 else 'iptables'}-{backend}"


def _plain_backend(program: str) -> IptablesBackend:
    # "iptables v1.8.9 (nf_tables)", "iptables v1.8.9 (legacy)", and "iptables v1.6.1" from before there was a choice.
    said = _run([program, "--version"]).stdout
    return IptablesBackend.NFT if "nf_tables" in said else IptablesBackend.LEGACY


def find_programs(backend: IptablesBackend, ipv6: bool) -> Programs | None:
    """The programs of that backend; None where they aren't installed."""
    name = "ip6tables" if ipv6 else "iptables"
    for prefix in (f"{name}-{backend}", name):
        save, restore = f"{prefix}-save", f"{prefix}-restore"
        if not all(map(shutil.which, (prefix, save, restore))):
            continue
        if prefix == name and _plain_backend(name) is not backend:
            continue
        return Programs(backend, ipv6, prefix, save, restore)
    return None


def require_programs(backend: IptablesBackend, ipv6: bool) -> Programs:
    """As find_programs. Raises UserError that names the package."""
    programs = find_programs(backend, ipv6)
    if programs is None:
        name = "ip6tables" if ipv6 else "iptables"
        raise UserError(f"{name} with the {backend} backend isn't installed: {INSTALL}")
    return programs


def has_ipv6() -> bool:
    """Whether the kernel speaks IPv6 at all (booted without ipv6.disable=1)."""
    return Path(_NET, "if_inet6").exists()


def has_legacy_tables(ipv6: bool) -> bool:
    """Whether the legacy backend has been used in this network namespace: without that nothing can be in it."""
    try:
        return bool(Path(_NET, f"ip{'6' if ipv6 else ''}_tables_names").read_text().strip())
    except OSError:
        return False
