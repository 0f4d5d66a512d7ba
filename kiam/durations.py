"""Durations as Go's flag package writes them: 1m30s, 500ms, 1.5h."""

from __future__ import annotations

from datetime import timedelta

import durationpy


def parse_duration(text: str) -> timedelta:
    """Parse a Go duration (https://pkg.go.dev/time#ParseDuration).

    Raises ValueError with a line that names the accepted form.
    """
    try:
        parsed = durationpy.from_str(text)
    except ValueError:
        parsed = None
    if not isinstance(parsed, timedelta):
        raise ValueError(f"'{text}' is not a duration; write it like 1m30s, 500ms or 2h")
    return parsed


def format_duration(duration: timedelta) -> str:
    """Write a duration the way parse_duration reads it."""
    return str(durationpy.to_str(duration))
