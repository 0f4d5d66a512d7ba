"""``make demo``: the problem, the cure and the failures, on one screen, with real packets."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from kiam.dataplane.registry import DATAPLANES
from tests.sandbox.aws import ACCOUNT, ROLE_BASE_ARN
from tests.sandbox.demo_tables import Step, annotations_table, steps_table
from tests.sandbox.host_pods import HostPod
from tests.sandbox.node import CREDENTIALS, NodeInABox, Pod, needs_root
from tests.sandbox.process import wait_until

MAKING = "making a node in a box: namespaces, certificates, Kubernetes API, STS, instance metadata"
PERMITTED = rf"{ROLE_BASE_ARN}(cart|team/billing)"
TOKEN = "/latest/api/token"
ROLE, SESSION_NAME = "iam.amazonaws.com/role", "iam.amazonaws.com/session-name"
ANNOTATIONS: dict[str, dict[str, str]] = {
    "cart": {ROLE: "cart"},
    "billing": {ROLE: "/team/billing", SESSION_NAME: "billing"},
    "greedy": {ROLE: "admin"},
    "bare": {},
    "new": {ROLE: "cart"},
    "hostnet": {ROLE: "cart"},
}
"""Of the pods, by name."""
OWNED = {"ns shop": {"iam.amazonaws.com/permitted": PERMITTED}} | {
    f"pod {name}": annotations or {"none": ""} for name, annotations in ANNOTATIONS.items()
}
"""What the owners of the namespace and its pods have written on them."""
SESSIONS = "assumed-role/ROLE/SESSION: the session name, kiam-<annotation or --session>, is what CloudTrail shows"

TITLES = {
    "before": "without kiam",
    "with": "with kiam server and kiam agent --dataplane={dataplane} --pod-uid=check --host-network=redirect",
    "away": "instance metadata down",
    "killed": "kiam agent killed (SIGKILL)",
}


class Demo:
    """Runs the steps and shows each as it is done."""

    def __init__(self, box: NodeInABox, console: Console, dataplane: str) -> None:
        self.box, self.console, self.dataplane = box, console, dataplane
        self.steps: list[Step] = []
        self.doing = ""
        self.live: Live | None = None

    def run(self) -> bool:
        """Do everything; whether all of it went as it has to."""
        with Live(self.screen(), console=self.console, refresh_per_second=8) as live:
            self.live = live
            self.without_kiam()
            self.with_kiam()
            self.without_instance_metadata()
            self.agent_killed()
            self.say("")
        return all(step.good for step in self.steps)

    def say(self, doing: str) -> None:
        """Show what is being done now."""
        self.doing = doing
        if self.live is not None:
            self.live.update(self.screen())

    def screen(self) -> Group:
        """What has been shown so far."""
        lines: list[RenderableType] = [Text("annotations", style="bold"), annotations_table(OWNED)]
        for part, title in TITLES.items():
            steps = [step for step in self.steps if step.part == part]
            if steps:
                lines += [Text(title.format(dataplane=self.dataplane), style="bold"), steps_table(steps)]
            if steps and part == "with":
                lines.append(Text(f"    {SESSIONS}", style="dim"))
        return Group(*lines, Text(self.doing, style="dim"))

    def show(self, *step_fields: str, good: bool, note: str = "") -> None:
        """Add a line: part, who, what, answer."""
        part, who, what, answer = step_fields
        self.steps.append(Step(part, who, what, answer, good, note))
        self.say("")

    # ---- the parts

    def without_kiam(self) -> None:
        """The node's role is anybody's."""
        box = self.box
        box.add_namespace("shop", PERMITTED)
        self.say("making the pods")
        pods = [
            box.add_pod(name, None, "shop", notes, known=name != "new")
            for name, notes in ANNOTATIONS.items()
            if name != "hostnet"
        ]
        self.cart, self.billing, self.greedy, self.bare, self.new = pods
        role = box.ask_from_host(CREDENTIALS).text
        self.show("before", "the host", "instance metadata: my role?", role, good=role == "node-role")
        got = self.cart.boto3()
        name = _name(got)
        self.show(
            "before", "pod cart", "boto3: who am I?", name, good="/node-role/" in name, note="the node's: the problem"
        )

    def with_kiam(self) -> None:
        """Each pod has its own role, or none."""
        box = self.box
        self.say("starting kiam server")
        box.start_server()
        self.say("starting kiam agent")
        box.start_agent("--pod-uid=check", "--host-network=redirect", "--node-name=node-1")
        self.identity(self.cart, "assumed-role/cart/kiam-")
        self.identity(self.billing, "assumed-role/billing/kiam-billing")
        answer = self.cart.credentials("team/billing")
        self.show(
            "with",
            "pod cart",
            "HTTP: credentials of team/billing",
            _line(answer.status, answer.text),
            good=answer.status == 403,
            note="not its annotation",
        )
        answer = self.bare.role()
        self.show(
            "with",
            "pod bare",
            "HTTP: my role? (no annotation)",
            _line(answer.status, answer.text),
            good=answer.status == 404,
        )
        answer = self.greedy.credentials("admin")
        self.show(
            "with",
            "pod greedy",
            "HTTP: credentials of admin",
            _line(answer.status, answer.text),
            good=answer.status == 403,
            note="its namespace doesn't permit it",
        )
        self.say("waiting for the Event")
        event = wait_until(lambda: box.events(self.greedy), "the Event that explains the refusal")[0]
        self.show(
            *(
                "with",
                "kubectl",
                "the Event about pod greedy",
                f"{event['type']} {event['reason']}: {event['message']}",
            ),
            good=event["reason"] == "KiamRoleForbidden",
        )
        text = _attempt(lambda: self.cart.ask_ipv6(CREDENTIALS, timeout=1).text)
        self.show("with", "pod cart", "HTTP: my role? over IPv6", text, good=text == "cart")
        self.who_is_asking()
        role = box.ask_from_host(CREDENTIALS).text
        self.show("with", "the host", "instance metadata: my role?", role, good=role == "node-role", note="untouched")

    def who_is_asking(self) -> None:
        """The kernel says whose socket it is, before the API has an address and against one that is another's."""
        hostnet = HostPod(self.box, namespace="shop", annotations=ANNOTATIONS["hostnet"])
        self.box.schedule(self.new, annotations=ANNOTATIONS["new"])
        self.say("asking in pod new")
        answer = self.new.credentials("cart")
        got = answer.json().get("Code", "") if answer.status == 200 else answer.text.strip()
        good = got == "Success"
        self.show(
            "with", "pod new", "HTTP: credentials of cart", got, good=good, note="the API has no address of it yet"
        )
        answer = self.greedy.ask_as(self.cart, CREDENTIALS + "cart")
        text = _line(answer.status, answer.text)
        self.show("with", "pod greedy", "the same from pod cart's address", text, good=answer.status == 403)
        token = self.cart.ask(TOKEN, "PUT", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}).text
        for pod, status in ((self.cart, 200), (self.billing, 401)):
            answer = pod.ask(CREDENTIALS, headers={"X-aws-ec2-metadata-token": token})
            text = answer.text.strip() if answer.status == 200 else _line(answer.status, answer.text.partition(",")[0])
            self.show("with", f"pod {pod.name}", "my role? with pod cart's token", text, good=answer.status == status)

        self.say("waiting for the agent to hear of pod hostnet")
        text = wait_until(lambda: self.hostnet_role(hostnet), "the agent to hear of pod hostnet")
        self.show(
            "with", "pod hostnet", "my role? from the host's network", text, good=text == "cart", note="its own, by UID"
        )

    @staticmethod
    def hostnet_role(pod: HostPod) -> str:
        """The role that it is told; empty while it is told none."""
        answer = pod.ask(CREDENTIALS)
        return answer.text if answer.status == 200 else ""

    def without_instance_metadata(self) -> None:
        """Session tokens are the agent's own, so credentials need nothing of the real service."""
        self.box.aws.faults(imds="fail")
        status = self.box.ask_from_host(CREDENTIALS).status
        self.show("away", "the host", "instance metadata: my role?", str(status), good=status == 503)
        self.identity(self.cart, "assumed-role/cart/kiam-", "away", "session token: the agent's")

    def agent_killed(self) -> None:
        """No agent, no credentials; above all not the node's."""
        assert self.box.agent is not None
        self.box.agent.kill()
        text = _attempt(lambda: self.cart.role().text)
        self.show("killed", "pod cart", "HTTP: my role?", text, good="refused" in text)
        got = self.cart.boto3()
        text = _name(got)
        self.show("killed", "pod cart", "boto3: who am I?", text, good="arn" not in got, note="never the node's")

    def identity(self, pod: Pod, expected: str, part: str = "with", note: str = "") -> None:
        """A pod's boto3 session tells who it is."""
        self.say(f"boto3 in pod {pod.name}")
        got = pod.boto3()
        text = _name(got)
        self.show(part, f"pod {pod.name}", "boto3 (IMDSv2): who am I?", text, good=expected in text, note=note)


def _line(status: int, text: str) -> str:
    return f"{status} {text.strip()}"


def _name(got: dict[str, str]) -> str:
    """Who a boto3 session is, without the part of the ARN that all have; or its error."""
    return got.get("arn", got.get("error", "")).removeprefix(f"arn:aws:sts::{ACCOUNT}:")


def _attempt(ask: Callable[[], str]) -> str:
    try:
        return ask()
    except OSError as error:
        return error.strerror or str(error)


def main() -> int:
    """Run the demonstration; 0 if everything went as it has to."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--dataplane", default="iptables")
    dataplane = parser.parse_args().dataplane
    if dataplane not in DATAPLANES:
        print(
            f"make demo: DATAPLANE={dataplane!r} is no dataplane; use DATAPLANE={'|'.join(DATAPLANES)}", file=sys.stderr
        )
        return 2
    why = needs_root()
    if why is not None:
        print(f"make demo: {why}", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    started = time.monotonic()
    box = NodeInABox(dataplane, needs_cgroups=True)
    try:
        with ExitStack() as stack:
            with console.status(MAKING):
                stack.enter_context(box)
            good = Demo(box, console, dataplane).run()
            with console.status("cleaning up"):
                stack.close()
    except KeyboardInterrupt:
        print("make demo: stopped", file=sys.stderr)
        return 130
    left = box.leftovers()
    if left:
        print(f"make demo: left behind: {', '.join(left)}", file=sys.stderr)
        return 1
    seconds = time.monotonic() - started
    verdict = "everything as it has to be" if good else "[bold red]not as it has to be: see the lines marked NO[/]"
    console.print(f"{verdict}; {seconds:.0f} s; nothing is left behind")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
