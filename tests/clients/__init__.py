"""Real, unmodified AWS clients get their credentials from kiam: which work is measured here, not promised."""
