# ruff: noqa: N802 (the driver's own names)
"""The compiler of CUDA kernels and its cache, without a GPU."""

import multiprocessing
import os
import shutil
import time

import pytest
import torch
from polyfield.cuda import cubin, device, native, nvrtc

pytest.importorskip("cuda.core", reason="cuda-core is not installed: pip install 'polyfield[cuda]'")

SMALL = nvrtc.KERNELS / "append_packed.cu"


@pytest.fixture
def compilations(monkeypatch):
    """The files that were compiled, as opposed to found in the cache."""
    done, really = [], nvrtc._compile

    def count(path, *rest):
        done.append(path.name)
        return really(path, *rest)

    monkeypatch.setattr(nvrtc, "_compile", count)
    return done


def test_a_kernel_says_what_its_parameters_are(tmp_path):
    compiled = nvrtc.compile_kernels(SMALL, "sm_90", tmp_path)
    assert set(compiled.parameters) == set(compiled.resources) == {"append_packed", "append_counts", "packed_indices"}
    assert compiled.parameters["packed_indices"] == (("p", 8), ("p", 8), ("W", 128))
    assert 8 <= compiled.resources["packed_indices"].registers <= 64


def test_what_was_compiled_is_found_again(tmp_path, compilations):
    first = nvrtc.compile_kernels(SMALL, "sm_90", tmp_path)
    begin = time.perf_counter()
    again = nvrtc.compile_kernels(SMALL, "sm_90", tmp_path)
    assert time.perf_counter() - begin < 0.05
    assert again == first and compilations == [SMALL.name]
    nvrtc.compile_kernels(SMALL, "sm_80", tmp_path)
    nvrtc.compile_kernels(SMALL, "sm_80", tmp_path, constants=(("PF_SIZE", 3),))
    assert len(compilations) == 3


@pytest.mark.parametrize("part", ["source", "header", "options", "version"])
def test_a_change_of_anything_compiles_again(tmp_path, compilations, monkeypatch, part):
    kernels, include = tmp_path / "kernels", tmp_path / "include"
    shutil.copytree(nvrtc.INCLUDE, include)
    kernels.mkdir()
    path = kernels / SMALL.name
    shutil.copy(SMALL, path)
    monkeypatch.setattr(nvrtc, "INCLUDE", include)
    nvrtc.compile_kernels(path, "sm_90", tmp_path)
    if part in ("source", "header"):
        changed = path if part == "source" else include / "standard.h"  # which it includes by way of another
        changed.write_text(changed.read_text() + "\n// more\n")
    elif part == "options":
        monkeypatch.setitem(nvrtc.OPTIONS, "lineinfo", False)
    else:
        monkeypatch.setattr(nvrtc, "version", lambda: "99.9")
    nvrtc.compile_kernels(path, "sm_90", tmp_path)
    assert len(compilations) == 2


@pytest.mark.parametrize("harm", ["cut", "flipped", "empty", "garbage"])
def test_a_damaged_cache_is_noticed(tmp_path, compilations, harm):
    first = nvrtc.compile_kernels(SMALL, "sm_90", tmp_path)
    (place,) = tmp_path.iterdir()
    content = bytearray(place.read_bytes())
    content[len(content) // 2] ^= 1
    damaged = {"cut": content[: len(content) // 3], "flipped": content, "empty": b"", "garbage": b"\n" * 100}
    place.write_bytes(damaged[harm])
    assert nvrtc.compile_kernels(SMALL, "sm_90", tmp_path).parameters == first.parameters
    assert len(compilations) == 2
    nvrtc.compile_kernels(SMALL, "sm_90", tmp_path)
    assert len(compilations) == 2  # and mended


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, compilations):
    file = tmp_path / "file"
    file.write_text("not a folder")
    assert nvrtc.compile_kernels(SMALL, "sm_90", file / "cache").parameters
    assert nvrtc.compile_kernels(SMALL, "sm_90", file / "cache").parameters
    assert len(compilations) == 2


def _compile(folder):
    return nvrtc.compile_kernels(SMALL, "sm_90", folder).parameters


def test_two_processes_at_once_do_not_disturb_each_other(tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        a, b = pool.map(_compile, [tmp_path, tmp_path])
    assert a == b and [path.name.startswith(".") for path in tmp_path.iterdir()] == [False]


def test_the_cache_is_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv(nvrtc.CACHE_VARIABLE, str(tmp_path))
    assert nvrtc.cache_folder() == tmp_path
    monkeypatch.delenv(nvrtc.CACHE_VARIABLE)
    if os.name == "posix":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert nvrtc.cache_folder() == tmp_path / "polyfield" / "kernels"


def test_errors_name_file_and_line(tmp_path):
    path = tmp_path / "broken.cu"
    path.write_text('#include "op.h"\nnamespace polyfield {\nvoid f(float* x, Threads<> n) { x[0] = nothing; }\n}\n')
    with pytest.raises(RuntimeError, match=r"broken\.cu: expected source that compiles(.|\n)*broken\.cu\(3\)"):
        nvrtc.compile_kernels(path, "sm_90", tmp_path)


def test_an_unknown_architecture_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match=r"expected a GPU that NVRTC [\d.]+ compiles for \(.*sm_90.*got sm_52; use"):
        nvrtc.compile_kernels(SMALL, "sm_52", tmp_path)
    with pytest.raises(RuntimeError, match="got sm_999; update cuda-core"):
        nvrtc.compile_kernels(SMALL, "sm_999", tmp_path)


def test_a_missing_compiler_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cuda.bindings", None)
    nvrtc._bindings.cache_clear()
    with pytest.raises(RuntimeError, match=r"expected the package cuda-core.*pip install 'polyfield\[cuda\]'"):
        nvrtc.compile_kernels(SMALL, "sm_90", tmp_path)


def test_machine_code_that_is_none_is_refused():
    with pytest.raises(ValueError, match="expected 64-bit ELF"):
        cubin.objects(bytes(100), suffix="_parameters")


# ---- the loader -----------------------------------------------------------------------------------------------------


class FakeDriver:
    """Answers as the CUDA driver would, and remembers what was launched."""

    class CUresult:
        CUDA_SUCCESS = 0

    class Error(int):
        name = "CUDA_ERROR_INVALID_IMAGE"

    CUfunction = int
    loads, version = 0, 13040

    def __init__(self):
        self.launched = []

    def cuLibraryLoadData(self, code, *rest):
        self.loads += 1
        return (0 if self.version >= 13000 else self.Error(200)), "library"

    def cuLibraryGetKernel(self, library, name):
        return 0, 7

    def cuDriverGetVersion(self):
        return 0, self.version

    def cuGetErrorString(self, error):
        return 0, b"device kernel image is invalid"

    def cuLaunchKernel(self, handle, *sizes_and_more):
        import ctypes

        self.launched.append((handle, *sizes_and_more[:6], sizes_and_more[7]))
        self.bytes = ctypes.string_at(ctypes.c_void_p.from_address(sizes_and_more[8]).value, 24)
        return (0,)


@pytest.fixture
def driver(monkeypatch, tmp_path):
    import contextlib
    import types

    fake = FakeDriver()
    monkeypatch.setattr(device, "_driver", lambda: fake)
    monkeypatch.setattr(device, "_LOADED", {})
    monkeypatch.setattr(device, "architecture", {0: "sm_90", 1: "sm_90", 2: "sm_80"}.__getitem__)
    monkeypatch.setenv(nvrtc.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: types.SimpleNamespace(cuda_stream=1000 + index))
    return fake


def test_a_launch_cuts_the_grid_and_packs_the_arguments(driver):
    device.launch("packed_indices", torch.device("cuda", 1), [4096, 8192, 9])
    assert driver.launched == [(7, 3, 1, 1, 128, 1, 1, 1001)]  # nine warps, four to a block, on that device's stream
    assert memoryview(driver.bytes).cast("q").tolist() == [4096, 8192, 9]
    device.launch("packed_indices", torch.device("cuda", 1), [4096, 8192, 0])
    assert len(driver.launched) == 1  # nothing to do


def test_code_is_loaded_once_per_architecture(driver):
    for index in (0, 1, 2, 0):
        device.launch("packed_indices", torch.device("cuda", index), [0, 0, 1])
        device.launch("append_counts", torch.device("cuda", index), [0, 0, 0, 0, 1])
    assert driver.loads == 2 and [launch[-1] for launch in driver.launched[::2]] == [1000, 1001, 1002, 1000]


def test_an_old_driver_is_said(driver):
    driver.version = 12040
    with pytest.raises(RuntimeError, match=r"expected a driver for CUDA 13 or newer.*got one for 12\.4; update"):
        device.launch("packed_indices", torch.device("cuda", 0), [0, 0, 1])


def test_a_refused_launch_is_said(driver, monkeypatch):
    monkeypatch.setattr(FakeDriver, "cuLaunchKernel", lambda *_: (FakeDriver.Error(200),))
    monkeypatch.setattr(FakeDriver.CUresult, "CUDA_ERROR_OUT_OF_MEMORY", 2, raising=False)
    with pytest.raises(RuntimeError, match="packed_indices: launch: expected success, got CUDA_ERROR_INVALID_IMAGE"):
        device.launch("packed_indices", torch.device("cuda", 0), [0, 0, 1])


def test_a_kernel_without_a_twin_is_refused(driver):
    with pytest.raises(ValueError, match=r"fma_peak: .* has no CUDA twin; move it with .cpu\(\)"):
        device.launch("fma_peak", torch.device("cuda", 0), [0, 1, 1])


def test_no_gpu_is_said():
    if not torch.cuda.is_available():
        assert "is built for the CPU only" in device.problem() or "finds no NVIDIA GPU" in device.problem()


def test_tensors_must_share_a_device_that_has_kernels():
    offsets, meta = torch.zeros(3, dtype=torch.int32), torch.zeros(3, dtype=torch.int32, device="meta")
    with pytest.raises(ValueError, match=r"argument 1: expected a tensor on cpu like the others, got meta; move it"):
        native.launch("packed_indices", None, offsets, meta, 2)
    with pytest.raises(ValueError, match="expected CPU or CUDA tensors, got meta"):
        native.launch("packed_indices", None, meta, meta, 2)
    with pytest.raises(ValueError, match="expected a contiguous tensor"):
        native.launch("packed_indices", None, offsets[::2], offsets, 1)
