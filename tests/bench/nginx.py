"""Debian's nginx with one worker and a given body: the limit that the agent's credential path is measured against."""

from __future__ import annotations

import contextlib

from tests.sandbox.netns import NODE_IPV4
from tests.sandbox.node import CREDENTIALS, NodeInABox, fetch
from tests.sandbox.process import Process, wait_until

PORT = 8191

_CONFIGURATION = """
daemon off;
worker_processes 1;
user root;
pid {directory}/nginx.pid;
error_log stderr;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  open_file_cache max=16;
  default_type "text/plain; charset=utf-8";
  types {{ }}
  client_body_temp_path {directory}/body-temp;
  proxy_temp_path {directory}/proxy-temp;
  fastcgi_temp_path {directory}/fastcgi-temp;
  uwsgi_temp_path {directory}/uwsgi-temp;
  scgi_temp_path {directory}/scgi-temp;
  server {{
    listen {port} backlog=1024;
    root {directory};
  }}
}}
"""


def start(box: NodeInABox, role: str, body: bytes, cpus: set[int]) -> Process:
    """The process, to be entered; it serves the body where the agent serves the role's credentials."""
    directory = box.directory / "nginx"
    served = directory / (CREDENTIALS + role).lstrip("/")
    served.parent.mkdir(parents=True, exist_ok=True)
    served.write_bytes(body)
    configuration = directory / "nginx.conf"
    configuration.write_text(_CONFIGURATION.format(directory=directory, port=PORT))
    return Process(
        ["nginx", "-p", str(directory), "-c", str(configuration)],
        box.directory / "nginx.log",
        netns=box.node.name,
        cgroup=box.cgroup.system,
        cpus=cpus,
    )


def wait(box: NodeInABox, role: str) -> None:
    """Wait until it serves."""

    def serves() -> bool:
        with contextlib.suppress(OSError):
            return box.node.call(fetch, str(NODE_IPV4), PORT, CREDENTIALS + role).status == 200
        return False

    wait_until(serves, "nginx to serve")
