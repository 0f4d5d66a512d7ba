"""What agent and server metrics have in common."""

from __future__ import annotations

LATENCY_BUCKETS = tuple(0.001 * 2**power for power in range(13))
"""Seconds: 1 ms doubling, 13 buckets, as conventional kiam's histograms have them."""
