"""Where instance metadata is."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

METADATA_IPV4 = IPv4Address("169.254.169.254")
"""Instance metadata over IPv4 (Amazon EC2 user guide, "Use the Instance Metadata Service")."""
METADATA_IPV6 = IPv6Address("fd00:ec2::254")
"""Instance metadata over IPv6, on Nitro instances only (same document)."""
METADATA_PORT = 80

CONTAINER_CREDENTIALS_IPV4 = IPv4Address("169.254.170.23")
"""Where SDKs expect the container credentials endpoint on a node (Amazon EKS user guide, "EKS Pod Identity"); AWS's
SDKs send an authorization token over plain HTTP to this address, the next and loopback only."""
CONTAINER_CREDENTIALS_IPV6 = IPv6Address("fd00:ec2::23")
