"""The error of a user's mistake: the command line prints its text, without a traceback."""

from __future__ import annotations


class UserError(ValueError):
    """``what: expected ..., got ...; remedy``."""


def at_least(least: float, value: float | None, what: str, unit: str = "") -> None:
    """Raises UserError for an option ``what`` whose value is less; None is not given."""
    if value is not None and value < least:
        raise UserError(f"{what}: expected at least {least}{unit}, got {value}")
