"""Kiam: pods get their own AWS role, and never the node's."""

__version__ = "5.0.0"
