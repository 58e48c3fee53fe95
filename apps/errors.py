"""The error of a user's mistake: the command line prints its text, without a traceback."""

from __future__ import annotations


class UserError(ValueError):
    """``what: expected ..., got ...; remedy``."""


def check_least(verb: str, **options: tuple[float | None, float]) -> None:
    """name=(value, least): raises UserError for an option's value below; None is not given."""
    for name, (value, least) in options.items():
        if value is not None and not value >= least:
            raise UserError(f"{verb}: --{name.replace('_', '-')}: expected at least {least}, got {value}")
