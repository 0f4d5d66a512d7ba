"""Which nodes' pods a caller may ask for, by the certificate it presents (``--node-authorization``).

An agent's certificate names its node by a DNS SAN equal to the node's name (``spec.nodeName`` of its pods). Node names
are DNS subdomains (https://kubernetes.io/docs/concepts/architecture/nodes/#node-name-uniqueness), so every node has
one. Names are compared whole: a wildcard SAN names no node. Health is answered to every certificate of the authority.
"""

from __future__ import annotations

from typing import Protocol

from kiam.server.grpc.callers import Callers, Context


class Authorization(Protocol):
    """Says for which nodes a caller speaks."""

    def nodes(self, context: Context) -> frozenset[str] | None:
        """The nodes whose pods the caller may have; None: all."""


class AnyNode:
    """Every agent with a certificate of the authority may have every node's pods, as in conventional kiam."""

    def nodes(self, context: Context) -> frozenset[str] | None:
        """None."""
        return None


class CertifiedNode:
    """An agent may have the pods of the node that its certificate names, so that a stolen key is worth one node."""

    def __init__(self, callers: Callers) -> None:
        self._callers = callers

    def nodes(self, context: Context) -> frozenset[str] | None:
        """The DNS SANs of the caller's certificate; a certificate without any speaks for no node."""
        return self._callers.dns_names(context)
