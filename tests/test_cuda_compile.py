"""Every kernel file compiles for every architecture of note, and takes no more of the chip than was recorded.

Registers, spills, stack and shared memory are those that NVRTC's assembler reports. A spill or stack that is new fails,
and so does a kernel with many more registers. How long a file compiles (``benchmarks/cases/compile_kernels.py``)
follows how much code becomes of it, which is looked at here. ``python -m tests.test_cuda_compile`` records what is
found.
"""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from polyfield.cuda import mlp_tensor, nvrtc, radiance_tensor

ARCHITECTURES = ("sm_80", "sm_90", "sm_120")
TABLE = Path(__file__).parent / "cuda_resources.json"
FILES = sorted(path for path in nvrtc.KERNELS.glob("*.cu") if path.stem not in nvrtc.WITHOUT_TWIN)
# What files are compiled for, where launches say it; () is what the file itself says.
HASHES = [(("PF_DIMENSIONS", d), ("PF_FEATURES", f)) for d, f in ((2, 2), (3, 1), (3, 2), (3, 4), (3, 8))]
SIZES = [(32, 64, 16), (32, 64, 64, 3), (32, 64, 64, 64, 64, 16), (16, 16, 16), (31, 32, 32, 4), (256, *[128] * 5)]
PARTS = [sizes[begin : end + 1] for sizes in SIZES for begin, end in mlp_tensor.segments(sizes)]
MLPS = {mlp_tensor.constants(s, biased): s for s in PARTS for biased in (False, True)}
IN_FLOAT16 = [(32, 64, 16), (32, 64, 64, 64, 64, 16), (31, 32, 32, 4), (256, 128)]
MLPS |= {mlp_tensor.constants(s, True, torch.float16): s for s in IN_FLOAT16}
FIELDS = [
    (8, 4, (32, 64, 16), (32, 64, 64, 3)),
    (16, 2, (32, 64, 16), (32, 64, 64, 3)),
    (16, 1, (16, 64, 16), (32, 64, 3)),
    (4, 8, (32, 64, 64, 5), (14, 32, 3)),
]
TABLES = {4: "Float16", 2: "BFloat16", 1: "float", 8: "Float16"}
RADIANCE = [radiance_tensor.sizes(TABLES[f], n, f, d, c) for n, f, d, colors in FIELDS for c in (colors, ())]
VARIANTS = {"hash_encode": HASHES, "hash_gradient": HASHES, "mlp_bf16": [*MLPS], "radiance_bf16": RADIANCE}
BUILDS = [(path, constants) for path in FILES for constants in VARIANTS.get(path.stem, [()])]
MORE_REGISTERS = 8  # may come with another version of NVRTC
MOST_CODE = 850 << 10  # bytes of a file's machine code, debug lines included; 900 KiB took 2.9 s


def _name(x: Path | nvrtc.Constants) -> str:
    return x.stem if isinstance(x, Path) else "-".join(str(value) for _, value in x)


def resources(path: Path, architecture: str, folder: Path, constants: nvrtc.Constants) -> dict[str, dict[str, int]]:
    compiled = nvrtc.compile_kernels(path, architecture, folder, constants)
    suffix = "".join(f" {value}" for _, value in constants)
    return {name + suffix: asdict(r) for name, r in sorted(compiled.resources.items())}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("path, constants", BUILDS, ids=_name)
def test_compiles_within_its_means(path, constants, architecture, tmp_path):
    pytest.importorskip("cuda.core", reason="cuda-core is not installed: pip install 'polyfield[cuda]'")
    found = resources(path, architecture, tmp_path, constants)
    (kept,) = tmp_path.iterdir()
    assert kept.stat().st_size < MOST_CODE, "it compiles for more than three seconds: unroll less"
    recorded = json.loads(TABLE.read_text())[architecture]
    for name, now in found.items():
        assert name in recorded, f"{name} is new: record it with python -m tests.test_cuda_compile"
        was = recorded[name]
        assert now["spills"] <= was["spills"] and now["stack"] <= was["stack"], f"{name}: {was} -> {now}"
        assert now["registers"] <= was["registers"] + MORE_REGISTERS, f"{name}: {was} -> {now}"
        assert now["shared"] <= was["shared"], f"{name}: {was} -> {now}"


def test_the_record_is_of_kernels_that_exist():
    names = {name.split()[0] for kernels in json.loads(TABLE.read_text()).values() for name in kernels}
    assert names <= set(nvrtc.sources())


def test_no_kernel_spills():
    """But those in float64, which only gradient checks use, and a few bytes of networks that fill the registers."""
    large = [" ".join(str(v) for _, v in build) for build, sizes in MLPS.items() if len(sizes) == 6 or max(sizes) > 64]
    for architecture, kernels in json.loads(TABLE.read_text()).items():
        for name, r in kernels.items():
            excused = "_f64" in name or (name.partition(" ")[2] in large and r["spills"] <= 256)
            assert excused or not (r["spills"] or r["stack"]), (architecture, name)


def record() -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        table = {
            architecture: {
                k: v for build in BUILDS for k, v in resources(build[0], architecture, Path(folder), build[1]).items()
            }
            for architecture in ARCHITECTURES
        }
    TABLE.write_text(json.dumps(table, indent=1).replace("\n   ", "").replace("\n  }", "}") + "\n")


if __name__ == "__main__":
    record()
