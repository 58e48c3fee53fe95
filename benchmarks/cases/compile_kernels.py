"""How long NVRTC takes for the CUDA kernels: each file as a fit needs it, all of them, and all again from the cache.

No GPU is needed. Processor time, since compilation is one thread's work and other programs then do not matter.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from polyfield.cuda import mlp_tensor, nvrtc, radiance_tensor

from ..measure import Row

ARCHITECTURE = "sm_90"
FIELD = (8, 4, (32, 64, 16), (32, 64, 64, 3))  # levels, features, networks: those of the recipe ngp
HASH = (("PF_DIMENSIONS", 3), ("PF_FEATURES", 4))
# The last two are what a network of 256 inputs and layers 128 wide is cut into.
NETWORKS = (
    (32, 64, 16),
    (32, 64, 64, 3),
    (32, 64, 64, 64, 64, 16),
    (256, 128),
    (128, 128),
)


def builds() -> dict[str, tuple[Path, nvrtc.Constants]]:
    """Label -> file and what it is compiled for."""
    found: dict[str, tuple[Path, nvrtc.Constants]] = {}
    for path in sorted(set(nvrtc.sources().values())):
        if path.stem == "mlp_bf16":
            for sizes in NETWORKS:
                found[f"{path.stem} {'-'.join(map(str, sizes))}"] = path, mlp_tensor.constants(sizes, True)
        elif path.stem == "radiance_bf16":
            levels, features, density, color = FIELD
            for name, last in (("", color), (", densities alone", ())):
                constants = radiance_tensor.sizes("Float16", levels, features, density, last)
                found[f"{path.stem}{name}"] = path, constants
        elif path.stem not in nvrtc.WITHOUT_TWIN:
            found[path.stem] = path, HASH if path.stem in ("hash_encode", "hash_gradient") else ()
    return found


def run(device: str) -> Iterator[Row]:
    nvrtc.architectures()  # the library is loaded
    everything, source = builds(), f"NVRTC {nvrtc.version()}"
    with tempfile.TemporaryDirectory() as name:
        folder, total = Path(name), 0.0
        nvrtc.compile_kernels(nvrtc.KERNELS / "append_packed.cu", ARCHITECTURE, folder / "first")
        for label, (path, constants) in everything.items():
            begin = time.process_time()
            compiled = nvrtc.compile_kernels(path, ARCHITECTURE, folder, constants)
            spent = time.process_time() - begin
            total += spent
            said = f"{source}, {len(compiled.code) // 1024} KiB of machine code"
            yield Row(f"compile {label}, {ARCHITECTURE}", None, spent, "s", said, "3 s")
        yield Row(f"compile all of these, {ARCHITECTURE}", None, total, "s", source, "20 s")
        begin = time.process_time()
        for path, constants in everything.values():
            nvrtc.compile_kernels(path, ARCHITECTURE, folder, constants)
        spent = time.process_time() - begin
        yield Row(f"all of these from the cache, {ARCHITECTURE}", None, spent * 1e3, "ms", "", "50 ms")
