"""Every claim is one command to repeat: ``python -m benchmarks [--only NAME ...] [--device D] [--json FILE]``.

Cases are the files of ``benchmarks/cases``; each has ``run(device) -> iterable of Row``. Run nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib
import json
import pkgutil
import sys
import traceback
from pathlib import Path

from . import cases
from .measure import Row, machine


def main() -> int:
    """Run the chosen cases and print a table."""
    names = sorted(m.name for m in pkgutil.iter_modules(cases.__path__))
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    arguments = parser.parse_args()
    described, date = machine(), datetime.date.today().isoformat()
    print(f"{described}, {date}\n")
    rows, failed = [], 0
    for name in arguments.only:
        try:
            for row in importlib.import_module(f"{cases.__name__}.{name}").run(arguments.device):
                rows.append({**dataclasses.asdict(row), "machine": described, "date": date})
                print(line(row), flush=True)
        except Exception:
            failed += 1
            print(f"{name}: failed\n{traceback.format_exc()}", file=sys.stderr, flush=True)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 1 if failed else 0


def line(row: Row) -> str:
    """One row as text."""
    ratio = "" if row.ratio is None else f"{row.ratio:8.2f}x"
    aim = f"; aim {row.aim}" if row.aim else ""
    return f"{row.name:<58} {row.value:10.3f} {row.unit:<12} {ratio:>9}  {row.reference}{aim}"


if __name__ == "__main__":
    sys.exit(main())
