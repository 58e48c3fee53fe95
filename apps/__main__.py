"""The command line: ``polyfield VERB ...``, one verb per file in ``apps/commands``.

Nothing heavy is imported before a verb is chosen. A user's mistake prints one line and exits with 2.
"""

from __future__ import annotations

import sys

from . import discover
from .errors import UserError

COMMANDS = f"{__package__}.commands"


def _help() -> str:
    lines = ["usage: polyfield VERB [options]    (polyfield VERB --help for a verb's own)", "", "verbs:"]
    lines += [f"  {name:<10} {discover.summary(COMMANDS, name)}" for name in discover.names(COMMANDS)]
    return "\n".join(lines)


def is_users(error: Exception) -> bool:
    """Whether an error is a user's mistake: ours, or one of the layers below, which know nothing of ``apps``."""
    from ..datasets.scene import SceneError
    from ..geometry.splat_io import SplatError

    return isinstance(error, (UserError, SceneError, SplatError))


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        import polyfield

        print(polyfield.__version__)
        return 0
    try:
        discover.load(COMMANDS, arguments[0], "polyfield: verb").main(arguments[1:])
    except Exception as error:
        if not is_users(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 141
    return 0


if __name__ == "__main__":
    sys.exit(main())
