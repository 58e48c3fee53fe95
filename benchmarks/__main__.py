"""Every claim is one command to repeat: ``python -m benchmarks [--only NAME ...] [--device D] [--json FILE]``.

Cases are the files of ``benchmarks/cases``, or of ``benchmarks/gpu`` for a GPU; each has ``run(device) -> iterable of
Row``. Run nothing else meanwhile. With ``--device cuda`` the checkout need not be installed or built: kernels are
compiled when they are first used, all are checked before any is timed, and rows are kept in ``results/cuda.json``.
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
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from . import cases, gpu
from .checkout import make_importable

if TYPE_CHECKING:
    from .measure import Row

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Run the chosen cases and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="files of benchmarks/cases, or benchmarks/gpu")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    arguments = parser.parse_args()
    folder = cases if arguments.device == "cpu" else gpu
    names = sorted(m.name for m in pkgutil.iter_modules(folder.__path__))
    chosen = arguments.only or names
    if unknown := set(chosen) - set(names):
        parser.error(f"--only: expected some of {', '.join(names)}, got {', '.join(sorted(unknown))}")
    make_importable()
    from polyfield.apps.devices import choose_device
    from polyfield.apps.errors import UserError

    try:
        device = choose_device(arguments.device)
        if device.type == "cuda":
            _check(device)
    except UserError as error:
        print(f"Not measured. {error}", file=sys.stderr)
        return 2
    return _run(folder.__name__, chosen, device, arguments.json or (RESULTS / "cuda.json" if folder is gpu else None))


def _check(device: torch.device) -> None:
    """Every kernel family against a few lines of torch, before anything is timed. Raises UserError."""
    from polyfield.apps.errors import UserError
    from polyfield.apps.self_check import CHECKS

    torch.cuda.set_device(device)
    with torch.device(device):
        found = {name: check() for name, check in CHECKS.items()}
    print("largest errors: " + ", ".join(f"{name} {error:.1e}" for name, error in found.items()))
    if wrong := [name for name, error in found.items() if not error < 1e-4]:
        raise UserError(f"benchmarks: expected kernels that are right, got errors in {', '.join(wrong)}")


def _run(folder: str, names: Sequence[str], device: torch.device, target: Path | None) -> int:
    from .measure import machine

    described, date = machine(device), datetime.date.today().isoformat()
    print(f"{described}, {date}\n")
    rows, failed = [], 0
    for name in names:
        try:
            for row in importlib.import_module(f"{folder}.{name}").run(str(device)):
                rows.append({**dataclasses.asdict(row), "machine": described, "date": date})
                print(line(row), flush=True)
        except Exception:
            failed += 1
            print(f"{name}: failed\n{traceback.format_exc()}", file=sys.stderr, flush=True)
        if target is not None:  # after every case: what was measured is kept, whatever comes
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 1 if failed else 0


def line(row: Row) -> str:
    """One row as text."""
    ratio = "" if row.ratio is None else f"{row.ratio:8.2f}x"
    aim = f"; aim {row.aim}" if row.aim else ""
    value = "-" if row.value is None else f"{row.value:.3f}"
    return f"{row.name:<58} {value:>10} {row.unit:<12} {ratio:>9}  {row.reference}{aim}"


if __name__ == "__main__":
    sys.exit(main())
