"""Checks that read the node and change nothing."""
