"""CUDA kernels compiled on this machine: a file of ``kernels/`` and an architecture in, machine code out, kept on disk.

NVRTC comes with ``pip install polyfield[cuda]``; no toolkit is needed. A compiled file lies in the cache folder under
the hash of all that it depends on: source, included headers, architecture, options, version of NVRTC. It is written
aside and renamed, so that two processes cannot disturb each other, and carries a checksum, so that whatever happened
to it since is noticed and it is compiled again. A folder that cannot be written costs a compilation per process.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.metadata
import io
import json
import os
import re
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import cubin

KERNELS = Path(__file__).parent / "kernels"
INCLUDE = Path(__file__).parent / "include"
CACHE_VARIABLE = "POLYFIELD_CACHE"
WITHOUT_TWIN = frozenset({"fma_peak", "mlp", "mlp_slopes", "radiance"})
REMEDY = "pip install 'polyfield[cuda]', or use the CPU"
OPTIONS: dict[str, Any] = {
    "std": "c++17",
    "device_as_default_execution_space": True,
    "lineinfo": True,
    "ptxas_options": "-v",  # registers and spills, in the log
}


@dataclass(frozen=True)
class Resources:
    """What a kernel takes of the chip: registers per thread, bytes of local memory, of spills, of shared memory."""

    registers: int
    stack: int
    spills: int
    shared: int


@dataclass(frozen=True)
class Compiled:
    """One kernel file as machine code: its kernels' parameters (kind, size), see ``include/op.h``; their resources."""

    code: bytes
    parameters: dict[str, tuple[tuple[str, int], ...]]
    resources: dict[str, Resources]


def entry_points(folder: Path) -> dict[str, Path]:
    """Which of a folder's kernel files each entry point is in."""
    return {
        name: path
        for path in sorted(folder.glob("*.cu"))
        for name in re.findall(r"^POLYFIELD_OP\((\w+),", path.read_text(encoding="utf-8"), re.MULTILINE)
    }


@functools.cache
def sources() -> dict[str, Path]:
    """The file of each entry point of this package."""
    return entry_points(KERNELS)


@functools.cache
def version() -> str:
    """The version of NVRTC. Its package is asked first: loading the library takes longer than loading a kernel."""
    if package := _package():
        return package.version
    _, major, minor = _bindings().nvrtcVersion()
    return f"{major}.{minor}"


def _package() -> importlib.metadata.Distribution | None:
    for name in ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12"):
        try:
            return importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def architectures() -> tuple[str, ...]:
    """All that this NVRTC compiles for, as ``sm_90``."""
    _, numbers = _bindings().nvrtcGetSupportedArchs()
    return tuple(f"sm_{number}" for number in numbers)


Constants = tuple[tuple[str, int | str], ...]  # macros that a kernel file is compiled with, such as its matrices' sizes


def compile_kernels(path: Path, architecture: str, folder: Path | None = None, constants: Constants = ()) -> Compiled:
    """The kernels of one file for one architecture, from ``folder`` (default: ``cache_folder()``) if they are there.

    Raises RuntimeError where cuda-core is missing, NVRTC does not know the architecture, or the source has an error.
    """
    key = _key(path, architecture, constants)
    place = (folder or cache_folder()) / f"{path.stem}-{architecture}-{key[:32]}"
    compiled = _read(place)
    if compiled is None:
        compiled = _compile(path, architecture, constants)
        _write(place, compiled)
    return compiled


def cache_folder() -> Path:
    """Where compiled kernels are kept: the environment variable ``POLYFIELD_CACHE``, or the system's place for them."""
    if stated := os.environ.get(CACHE_VARIABLE):
        return Path(stated)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "polyfield" / "kernels"


# ---- compilation ----------------------------------------------------------------------------------------------------


@functools.cache
def _bindings():
    try:
        from cuda.bindings import nvrtc
    except ImportError as error:
        raise RuntimeError(f"cuda: expected the package cuda-core, to compile kernels, got none; {REMEDY}") from error
    _preload()
    try:
        nvrtc.nvrtcVersion()
    except RuntimeError as error:  # how cuda-pathfinder says that there is no such library
        raise RuntimeError(f"cuda: expected the library NVRTC, which compiles kernels, got none; {REMEDY}") from error
    return nvrtc


def _preload() -> None:
    """Load NVRTC from where its package is: cuda-core itself looks in the interpreter's own folders only."""
    package = _package()
    for file in (package.files or []) if package else []:
        if re.fullmatch(r"libnvrtc\.so\.\d+", file.name) and (path := Path(str(file.locate()))).is_file():
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


def _compile(path: Path, architecture: str, constants: Constants) -> Compiled:
    known = architectures()
    if architecture not in known:
        raise RuntimeError(
            f"cuda: expected a GPU that NVRTC {version()} compiles for ({', '.join(known)}), got {architecture}; "
            f"{'update cuda-core' if _number(architecture) > _number(known[-1]) else 'use the CPU'}"
        )
    from cuda.core import Program, ProgramOptions

    macros = [(name, str(value)) for name, value in constants]
    where = {"name": str(path), "include_path": [str(INCLUDE)]}
    options = ProgramOptions(arch=architecture, define_macro=macros or None, **where, **OPTIONS)
    log = io.StringIO()
    try:
        code = Program(path.read_text(encoding="utf-8"), "c++", options).compile("cubin", logs=log).code
    except Exception as error:
        wanted = f"source that compiles for {architecture}"
        raise RuntimeError(f"cuda: {path.name}: expected {wanted}, got {error}") from error
    parameters = {name: _parameters(table) for name, table in cubin.objects(code, suffix="_parameters").items()}
    return Compiled(code, parameters, _resources(log.getvalue()))


def _number(architecture: str) -> int:
    return int(re.sub(r"\D", "", architecture))


def _parameters(table: bytes) -> tuple[tuple[str, int], ...]:
    numbers = memoryview(table).cast("i")
    return tuple((chr(kind), size) for kind, size in zip(numbers[::2], numbers[1::2], strict=True))


def _resources(log: str) -> dict[str, Resources]:
    """What the assembler said of each kernel."""
    found = {}
    for part in log.split("Compiling entry function ")[1:]:

        def number(pattern: str, part: str = part) -> int:
            match = re.search(pattern, part)
            return int(match[1]) if match else 0

        found[part.split("'")[1]] = Resources(
            registers=number(r"Used (\d+) registers"),
            stack=number(r"(\d+) bytes stack frame"),
            spills=number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
            shared=number(r"(\d+) bytes smem"),
        )
    return found


# ---- the cache ------------------------------------------------------------------------------------------------------


def _key(path: Path, architecture: str, constants: Constants) -> str:
    digest = hashlib.sha256()
    for text in (architecture, version(), repr(constants), json.dumps(OPTIONS, sort_keys=True), *texts(path)):
        digest.update(f"{len(text)}:".encode() + text.encode())
    return digest.hexdigest()


def texts(path: Path) -> list[str]:
    """The file and all headers of ours that it includes."""
    found: dict[Path, str] = {}
    waiting = [path]
    while waiting:
        at = waiting.pop()
        if at not in found and at.is_file():
            found[at] = at.read_text(encoding="utf-8")
            waiting += [INCLUDE / name for name in re.findall(r'^#include "(.+?)"', found[at], re.MULTILINE)]
    return list(found.values())


def _read(place: Path) -> Compiled | None:
    try:
        content = place.read_bytes()
    except OSError:
        return None
    digest, payload = content[:32], content[32:]
    if hashlib.sha256(payload).digest() != digest:
        return None
    header, code = payload.split(b"\n", 1)
    fields = json.loads(header)
    parameters = {name: tuple((k, s) for k, s in rows) for name, rows in fields["parameters"].items()}
    return Compiled(code, parameters, {name: Resources(**r) for name, r in fields["resources"].items()})


def _write(place: Path, compiled: Compiled) -> None:
    fields = {
        "parameters": compiled.parameters,
        "resources": {name: asdict(r) for name, r in compiled.resources.items()},
    }
    payload = json.dumps(fields).encode() + b"\n" + compiled.code
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        descriptor, aside = tempfile.mkstemp(dir=place.parent, prefix=".", suffix=".part")
    except OSError:
        return  # compiled again next time
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(hashlib.sha256(payload).digest() + payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, place)
    except OSError:
        Path(aside).unlink(missing_ok=True)
