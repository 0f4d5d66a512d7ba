"""The Kubernetes API over the official client's configuration, authentication and TLS, without its model classes.

The model classes would make a whole Python object tree of every pod; kiam wants a handful of fields of 100,000 pods,
so lists and watches are handed on as bytes.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

import aiohttp
import msgspec
import yaml
from kubernetes.aio.client import Configuration
from kubernetes.aio.client.rest import RESTClientObject
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config

from kiam.errors import UserError
from kiam.proxies import proxy_for
from kiam.server.kubernetes.objects import UNREADABLE, WireStatus

log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 10.0
REQUEST_TIMEOUT = 30.0
"""Seconds for a whole request that isn't a watch; a page of a list takes an API server a second at most."""
KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES = 15, 5, 3
"""TCP keepalive: a peer that vanished without a word is noticed after idle + interval * probes = 30 s."""
MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"


class KubeError(Exception):
    """The API refused, or could not be reached."""

    def __init__(self, message: str, status: int = 0, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        """The HTTP status; 0: there was no answer."""
        self.retry_after = retry_after
        """Seconds the API asks to be left alone."""


class _RestClient(RESTClientObject):  # type: ignore[misc]  # kubernetes carries no types
    """The official client's connection pool, with TCP keepalive so that a half-open watch ends.

    It goes through the proxy that its configuration names, and aiohttp's own reading of the environment is off.
    """

    def _create_connector(self) -> aiohttp.TCPConnector:
        return aiohttp.TCPConnector(limit=self.maxsize, ssl=self.ssl_context, socket_factory=_keepalive_socket)


def _keepalive_socket(info: Any) -> socket.socket:
    family, kind, protocol, _, _ = info
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    return made


class KubeApi:
    """A connection to the API. Make it with :meth:`connect`, end it with :meth:`close`."""

    def __init__(self, kubeconfig: str) -> None:
        self._kubeconfig = kubeconfig
        self._configuration = Configuration()
        self._rest: Any = None

    @classmethod
    async def connect(cls, kubeconfig: str) -> KubeApi:
        """Read the configuration: a kubeconfig's path, or empty for the pod's own service account.

        Nothing is sent yet. Raises UserError in one line when the configuration can't work.
        """
        api = cls(kubeconfig)
        await api._configure()
        return api

    async def close(self) -> None:
        """Close every connection."""
        if self._rest is not None:
            await self._rest.close()

    async def reload(self) -> None:
        """Read the configuration again, after the API said 401: tokens and client certificates rotate."""
        old = self._rest
        try:
            await self._configure()
        except UserError as error:
            log.error("%s", error)
            return
        if old is not None:
            await old.close()

    async def get(self, path: str, query: Mapping[str, str]) -> bytes:
        """The body of a GET. Raises KubeError."""
        async with self._request("GET", path, query, aiohttp.ClientTimeout(total=REQUEST_TIMEOUT)) as response:
            return bytes(await response.read())

    async def post(self, path: str, body: dict[str, Any]) -> bytes:
        """Create an object; the answer's body. Raises KubeError."""
        async with self._request("POST", path, {}, aiohttp.ClientTimeout(total=REQUEST_TIMEOUT), body) as response:
            return bytes(await response.read())

    async def patch(self, path: str, body: dict[str, Any]) -> None:
        """Merge fields into an object (RFC 7386). Raises KubeError."""
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT)
        async with self._request("PATCH", path, {}, timeout, body, MERGE_PATCH):
            pass

    async def apply(self, path: str, body: dict[str, Any], manager: str) -> None:
        """Apply an object on the server's side, as a field manager that has its way. Raises KubeError."""
        query = {"fieldManager": manager, "force": "true"}
        # JSON is YAML.
        async with self._request("PATCH", path, query, aiohttp.ClientTimeout(total=REQUEST_TIMEOUT), body, APPLY_PATCH):
            pass

    async def delete(self, path: str) -> None:
        """Delete an object, and what it owns in the background. Raises KubeError."""
        options = {"propagationPolicy": "Background"}
        async with self._request("DELETE", path, options, aiohttp.ClientTimeout(total=REQUEST_TIMEOUT)):
            pass

    @asynccontextmanager
    async def stream(self, path: str, query: Mapping[str, str], seconds: float) -> AsyncIterator[AsyncIterator[bytes]]:
        """A GET whose body is read as it comes, for so many seconds at most. Raises KubeError."""
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=CONNECT_TIMEOUT)
        async with self._request("GET", path, query, timeout) as response:
            yield response.content.iter_any()

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        limits: aiohttp.ClientTimeout,
        body: dict[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        url = f"{self._configuration.host}{path}{'?' if query else ''}{urlencode(query)}"
        # Not compressed: inflating a page of a list on the event loop would block it, and the API is near.
        headers = {"Accept": "application/json", "Accept-Encoding": "identity", "Content-Type": content_type}
        try:
            for setting in (await self._configuration.auth_settings()).values():
                headers[setting["key"]] = setting["value"]
            response = (await self._rest.request(method, url, headers, body, _request_timeout=limits)).response
            try:
                if response.status >= HTTPStatus.BAD_REQUEST:
                    raise await self._refusal(response)
                yield response
            finally:
                response.release()
        except (aiohttp.ClientError, TimeoutError, OSError, ConfigException) as error:
            text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise KubeError(f"Kubernetes API {self._configuration.host}: {text}") from error

    async def _refusal(self, response: aiohttp.ClientResponse) -> KubeError:
        body = await response.content.read(1 << 16)
        try:
            message = msgspec.json.decode(body, type=WireStatus).message or ""
        except UNREADABLE:
            message = body[:200].decode(errors="replace")
        if response.status == HTTPStatus.UNAUTHORIZED:
            await self.reload()
        return KubeError(
            f"Kubernetes API {self._configuration.host}: HTTP {response.status}: {message}",
            response.status,
            _seconds(response.headers.get("Retry-After", "")),
        )

    async def _configure(self) -> None:
        configuration = Configuration()
        configuration.connection_pool_maxsize = 16
        configuration.client_session_kwargs = {"trust_env": False}
        try:
            if self._kubeconfig:
                with open(self._kubeconfig, "rb"):  # noqa: ASYNC230, PTH123  # says what is wrong before the client library hides it
                    pass
                await load_kube_config(
                    config_file=self._kubeconfig, client_configuration=configuration, persist_config=False
                )
            else:
                load_incluster_config(client_configuration=configuration)
            # A kubeconfig's proxy-url counts more than the environment, as with kubectl.
            configuration.proxy = configuration.proxy or proxy_for(configuration.host)
            rest = _RestClient(configuration)
        except OSError as error:
            what = error.strerror or str(error)
            raise UserError(f"--kubeconfig: {error.filename or self._kubeconfig}: {what}") from error
        except (ConfigException, yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError) as error:
            raise self._complaint(error) from error
        self._configuration, self._rest = configuration, rest

    def _complaint(self, error: Exception) -> UserError:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        if not self._kubeconfig:
            what = f"no --kubeconfig, and not in a cluster's pod: {reason}"
            return UserError(what, "give --kubeconfig a path, or run in a pod")
        return UserError(
            f"--kubeconfig: {self._kubeconfig} can't be used: {reason}", "check it with kubectl --kubeconfig"
        )


def _seconds(text: str) -> float:
    """Retry-After in seconds, as the API server writes it; other forms count as none."""
    return float(min(int(text), 60)) if text.isascii() and text.isdigit() else 0.0
