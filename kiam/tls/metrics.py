"""Conventional kiam's metrics of the certificate a process presents."""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry, Gauge

from kiam.tls.summary import Side, TLSSummary


class TLSMetrics:
    """Gauges ``grpc_{client,server}_tls_certificate_{update_error,verify_error,expiry_seconds}``.

    As in conventional kiam the errors are 0 or 1 for the latest look, not counts.
    """

    def __init__(self, side: Side, registry: CollectorRegistry = REGISTRY) -> None:
        """Register the gauges of one side of the connection."""
        prefix = f"grpc_{side}_tls_certificate"
        self._update_error = Gauge(
            f"{prefix}_update_error",
            f"1 if the latest {side} certificate files could not be taken over.",
            registry=registry,
        )
        self._verify_error = Gauge(
            f"{prefix}_verify_error",
            f"1 if the {side} certificate in use has expired, is not signed by --ca, or one side refuses the other's.",
            registry=registry,
        )
        self._expiry = Gauge(
            f"{prefix}_expiry_seconds",
            f"When the first certificate in the chain of the {side} certificate in use expires, in Unix time.",
            registry=registry,
        )
        self._soon = Gauge(
            f"{prefix}_expires_soon",
            f"1 if the {side} certificate in use has 30 days left or less.",
            registry=registry,
        )

    def expires_soon(self, soon: bool) -> None:
        """Whether whoever renews the certificate should have done so."""
        self._soon.set(int(soon))

    def loaded(self, inspected: TLSSummary) -> None:
        """New material is in use."""
        self._expiry.set(inspected.expiry.timestamp())
        self.verified(inspected)
        # Last: scrapes come from another thread, and whoever waits for the error to go takes the rest for new.
        self._update_error.set(0)

    def update_failed(self) -> None:
        """The files changed, and what they hold now can't be used."""
        self._update_error.set(1)

    def verified(self, inspected: TLSSummary) -> None:
        """The other side accepted it, or it looks as if it would."""
        self._verify_error.set(0 if inspected.verified else 1)

    def verify_failed(self) -> None:
        """What is in use is no longer good, or one side didn't accept the other's."""
        self._verify_error.set(1)
