"""The node that the documentation's commands run on: what they name is there, under the names they use."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from kiam.cli import main
from tests.sandbox.netns import NODE_IPV4
from tests.sandbox.node import KIAM, NodeInABox
from tests.sandbox.process import Process, placed

CERTIFICATES = ("ca.pem", "server.pem", "server-key.pem", "agent.pem", "agent-key.pem")
HOSTS = "127.0.0.1 localhost kiam-server\n::1 localhost kiam-server\n"


class DocumentedNode:
    """A sandbox's node with ``kiam-server`` on port 443."""

    def __init__(self, box: NodeInABox) -> None:
        self._box = box
        self._directory = box.directory / "documented"
        self._directory.mkdir()
        for step in ("init", "server", "agent"):
            assert main(["certs", step, f"--dir={self._directory}"]) == 0
        self._hosts = self._directory / "hosts"
        self._hosts.write_text(HOSTS)

    @property
    def environment(self) -> Mapping[str, str]:
        """What a server finds on its node."""
        return {
            **self._box.aws.environment,
            **self._box.environment,
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://169.254.169.254",
            "NODE_IP": str(NODE_IPV4),
        }

    def furnish(self, folder: Path) -> None:
        """Put the certificates and the kubeconfig where a page's commands look for them."""
        for name in CERTIFICATES:
            shutil.copy(self._directory / name, folder)
        shutil.copy(self._box.kubeconfig, folder / "admin.conf")

    def placed(self, command: list[str]) -> list[str]:
        """The command that runs another one on the node, where kiam-server is a name."""
        script = 'mount --bind "$0" /etc/hosts && exec "$@"'
        with_names = ["unshare", "--mount", "/bin/sh", "-c", script, str(self._hosts), *command]
        return placed(with_names, self._box.node.name)

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Run kiam server as the pages have it."""
        files = [
            f"--{flag}={self._directory / name}"
            for flag, name in zip(("ca", "cert", "key"), CERTIFICATES, strict=False)
        ]
        flags = ["--bind=[::]:443", f"--kubeconfig={self._box.kubeconfig}", "--role-base-arn-autodetect", *files]
        with Process(
            [*KIAM, "server", *flags],
            self._directory / "server.log",
            netns=self._box.node.name,
            env=self.environment,
        ) as server:
            server.wait_for_output(r" ready( |$)")
            yield


@contextmanager
def documented_node() -> Iterator[DocumentedNode]:
    """Make it; everything is gone afterwards."""
    with NodeInABox("none") as box:
        node = DocumentedNode(box)
        with node.serving():
            yield node
