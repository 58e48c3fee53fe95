"""Every kernel file compiles for every architecture of note, and takes no more of the chip than was recorded.

Registers, spills, stack and shared memory are those that NVRTC's assembler reports. A spill or stack that is new fails,
and so does a kernel with many more registers. ``python -m tests.test_cuda_compile`` records what is found.
"""

import json
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from polyfield.cuda import nvrtc

ARCHITECTURES = ("sm_80", "sm_90", "sm_120")
TABLE = Path(__file__).parent / "cuda_resources.json"
FILES = sorted(path for path in nvrtc.KERNELS.glob("*.cu") if path.stem not in nvrtc.WITHOUT_TWIN)
MORE_REGISTERS = 8  # may come with another version of NVRTC


def resources(path: Path, architecture: str, folder: Path) -> dict[str, dict[str, int]]:
    compiled = nvrtc.compile_kernels(path, architecture, folder)
    return {name: asdict(r) for name, r in sorted(compiled.resources.items())}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_compiles_within_its_means(path, architecture, tmp_path):
    pytest.importorskip("cuda.core", reason="cuda-core is not installed: pip install 'polyfield[cuda]'")
    begin = time.process_time()
    found = resources(path, architecture, tmp_path)
    assert time.process_time() - begin < 10  # about 1 to 3 s a file; templates that run away cost minutes
    recorded = json.loads(TABLE.read_text())[architecture]
    for name, now in found.items():
        assert name in recorded, f"{name} is new: record it with python -m tests.test_cuda_compile"
        was = recorded[name]
        assert now["spills"] <= was["spills"] and now["stack"] <= was["stack"], f"{name}: {was} -> {now}"
        assert now["registers"] <= was["registers"] + MORE_REGISTERS, f"{name}: {was} -> {now}"
        assert now["shared"] <= was["shared"], f"{name}: {was} -> {now}"


def test_the_record_is_of_kernels_that_exist():
    names = {name for kernels in json.loads(TABLE.read_text()).values() for name in kernels}
    assert names <= set(nvrtc.sources())


def test_no_kernel_spills():
    table = json.loads(TABLE.read_text())
    assert not [(a, name) for a, kernels in table.items() for name, r in kernels.items() if r["spills"] or r["stack"]]


def record() -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        table = {
            architecture: {k: v for path in FILES for k, v in resources(path, architecture, Path(folder)).items()}
            for architecture in ARCHITECTURES
        }
    TABLE.write_text(json.dumps(table, indent=1).replace("\n   ", "").replace("\n  }", "}") + "\n")


if __name__ == "__main__":
    record()
