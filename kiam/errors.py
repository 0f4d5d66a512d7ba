"""Errors that are the user's to mend."""

from __future__ import annotations


class UserError(Exception):
    """One clear line that says what is wrong and what to do; the command prints it and exits with 1.

    Anything else that escapes a command is a bug and keeps its traceback.
    """
