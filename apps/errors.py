"""The error of a user's mistake: the command line prints its text, without a traceback."""

from __future__ import annotations


class UserError(ValueError):
    """``what: expected ..., got ...; remedy``."""
