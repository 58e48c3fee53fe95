"""Which device a verb works on, what it says of one that cannot be used or is too small, and tensors on two of them."""

import re
import sys

import pytest
import torch
from polyfield.apps import devices
from polyfield.apps.api import fit_scene
from polyfield.apps.errors import UserError
from polyfield.apps.recipes import ngp
from polyfield.cuda import device as gpu
from polyfield.cuda import nvrtc

# ---- which device ---------------------------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch):
    """A machine whose GPUs have these problems."""

    def with_gpus(*problems, present=True):
        report = lambda index=0: problems[index] if index < len(problems) else "there is no such GPU"  # noqa: E731
        monkeypatch.setattr(gpu, "problem", report)
        monkeypatch.setattr(devices, "gpu_seems_present", lambda: present)
        monkeypatch.setattr(devices, "_said", set())

    return with_gpus


def test_auto_takes_the_gpu_that_works(machine, capsys):
    machine(None)
    assert devices.choose_device() == torch.device("cuda", 0)
    machine("no GPU at all", present=False)
    assert devices.choose_device() == torch.device("cpu")
    assert capsys.readouterr().err == ""


def test_auto_says_once_why_a_gpu_idles(machine, capsys):
    machine("the driver is old; update it")
    assert devices.choose_device("auto") == devices.choose_device("auto") == torch.device("cpu")
    assert capsys.readouterr().err == "Working on the CPU, not on the GPU: the driver is old; update it\n"


def test_a_device_that_is_named_is_that_or_an_error(machine):
    machine(None, "the driver is old; update it")
    assert devices.choose_device("cuda") == devices.choose_device("cuda:0") == torch.device("cuda", 0)
    assert devices.choose_device(torch.device("cpu")) == torch.device("cpu")
    wanted = (
        "--device cuda:1: expected a GPU that can be used, got none: the driver is old; update it; or use --device cpu"
    )
    with pytest.raises(UserError, match=f"^{wanted}$"):
        devices.choose_device("cuda:1")
    with pytest.raises(UserError, match="--device: expected auto, cpu, cuda or cuda:N, got 'gpu'"):
        devices.choose_device("gpu")


def test_why_a_gpu_cannot_be_used(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert re.search(r"is built for the CPU only; install one that is built for CUDA", gpu.problem())
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def init():
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nUpdate it.")

    monkeypatch.setattr(torch.cuda, "init", init)
    assert re.search(
        r"finds no NVIDIA GPU \(The NVIDIA driver .* too old \(found version 11040\)\); check", gpu.problem()
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert re.search(r"there is no cuda:1, for torch .* finds 1 GPU; choose a lower number", gpu.problem(1))


@pytest.fixture
def a_gpu(monkeypatch):
    """A GPU that torch can use, of a given compute capability."""
    really = torch.ones

    def of(*capability):
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "init", lambda: None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(torch, "ones", lambda *shape, **_: really(*shape))
        monkeypatch.setattr(gpu, "architecture", lambda index: "sm_{}{}".format(*capability))
        monkeypatch.setattr(gpu, "_LOADED", {})
        monkeypatch.setattr(devices, "_said", set())

    return of


def test_a_gpu_without_cuda_core_idles_and_that_is_said(a_gpu, monkeypatch, capsys, tmp_path):
    a_gpu(9, 0)
    monkeypatch.setenv(nvrtc.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    for cached in (nvrtc._bindings, gpu._driver):
        cached.cache_clear()
    assert devices.choose_device("auto") == torch.device("cpu")
    said = capsys.readouterr().err
    assert re.search(r"Working on the CPU, not on the GPU: .* cuda-core, .* pip install 'polyfield\[cuda\]'", said)
    with pytest.raises(UserError, match=r"--device cuda: .* the package cuda-core"):
        devices.choose_device("cuda")


def test_a_gpu_that_the_compiler_does_not_know_idles_and_that_is_said(a_gpu, monkeypatch, capsys, tmp_path):
    pytest.importorskip("cuda.core", reason="cuda-core is not installed: pip install 'polyfield[cuda]'")
    monkeypatch.setenv(nvrtc.CACHE_VARIABLE, str(tmp_path))
    for capability, remedy in (((5, 2), "use the CPU"), ((99, 0), "update cuda-core")):
        a_gpu(*capability)
        assert devices.choose_device("auto") == torch.device("cpu")
        said = capsys.readouterr().err
        assert "got sm_{}{}; ".format(*capability) + remedy in said
        with pytest.raises(UserError, match=r"--device cuda: expected a GPU .* got none: .* compiles for"):
            devices.choose_device("cuda")


def test_a_gpu_without_bfloat16_says_so(monkeypatch):
    from polyfield.cuda import mlp, native

    x = torch.zeros(4, 3)
    monkeypatch.setattr(mlp, "on_gpu", lambda tensor: True)
    monkeypatch.setattr(mlp, "has_bfloat16", lambda tensor: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    for half in ("bfloat16", "float16"):
        with pytest.raises(ValueError, match=rf"^mlp: {half}: expected a GPU .* 8\.0 or newer, got 7\.5; pass {half}"):
            mlp.mlp(x, [torch.zeros(2, 3)], **{half: True})
    monkeypatch.setattr(native, "on_gpu", lambda tensor: True)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    assert not native.has_bfloat16(x)


def test_the_command_line_refuses_a_device_that_is_none(capsys, tmp_path):
    from polyfield.apps.__main__ import main

    assert main(["fit", "ngp", "demo", "--run", str(tmp_path / "run"), "--device", "gpu"]) == 2
    assert "expected auto, cpu, cuda or cuda:N, got 'gpu'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# ---- too little memory ----------------------------------------------------------------------------------------------

NO_GPU_MEMORY = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 139.72 GiB of which 3.25 "
)


def test_too_little_memory_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(devices, "free_memory", lambda device: 3 << 30)
    wanted = (
        r"^fit: expected enough memory on cuda:0 \(NVIDIA H200\), got too little: asked for 20\.00 GB, "
        r"3\.00 GB are free; lower --samples-per-step$"
    )
    for error in (torch.OutOfMemoryError(NO_GPU_MEMORY), RuntimeError(NO_GPU_MEMORY)):
        with (
            pytest.raises(UserError, match=wanted),
            devices.enough_memory("fit", torch.device("cuda", 0), "lower --samples-per-step"),
        ):
            raise error


def test_too_little_memory_on_a_cpu():
    wanted = (
        r"^extract: expected enough memory on the CPU, got too little: asked for \d{7}\.\d\d GB, [\d.]+ GB are free; x$"
    )
    with pytest.raises(UserError, match=wanted), devices.enough_memory("extract", devices.CPU, "x"):
        torch.empty(1 << 50)
    with pytest.raises(RuntimeError, match=r"^other$"), devices.enough_memory("extract", devices.CPU, "x"):
        raise RuntimeError("other")


def test_a_fit_says_which_option_needs_less_memory(monkeypatch, tmp_path):
    def build(*_):
        raise torch.OutOfMemoryError(NO_GPU_MEMORY)

    monkeypatch.setattr(ngp.Config, "build", build)
    monkeypatch.setattr("polyfield.apps.fit_run.choose_device", lambda _: devices.CPU)
    with pytest.raises(
        UserError, match=r"fit: expected enough memory .* 20.00 GB.*; lower --samples-per-step or --field"
    ):
        fit_scene("demo", run=tmp_path / "run", downscale=4)


# ---- two devices, at the ops ----------------------------------------------------------------------------------------


def _mixed_calls():
    from polyfield.cuda import (
        compositing,
        distortion,
        gaussians,
        hash_encoding,
        marching,
        mlp,
        occupancy,
        packing,
        radiance,
        sparse_adam,
        ssim,
    )

    x, far = torch.zeros(4), torch.zeros(4, device="meta")
    offsets, points = torch.tensor([0, 4], dtype=torch.int32), torch.zeros(4, 3)
    layout = hash_encoding.HashLayout.build(levels=1, log2_size=4, base_resolution=1, finest_resolution=1)
    table = torch.zeros(layout.entries, 2, device="meta")
    bits = torch.zeros(1, 1, dtype=torch.int64)
    grid = dict(resolution=4, half=1.0, step=0.1)
    cells = torch.zeros(4, dtype=torch.int32)
    weights, tables, color = torch.zeros(16, 3), (torch.zeros(layout.entries, 2), layout), [torch.zeros(3, 5)]
    cloud = [points, torch.zeros(4, 4), points, x, None, torch.eye(3), torch.eye(4), 8, 8]
    image = torch.zeros(4, 4, 3)
    return {
        "mlp: weights[1]": lambda: mlp.mlp(points, [weights, torch.zeros(3, 16, device="meta")]),
        "mlp: biases[0]": lambda: mlp.mlp(points, [weights], [torch.zeros(16, device="meta")]),
        "radiance: extras": lambda: radiance.radiance(points, far[:, None], *tables, [torch.zeros(4, 2)], color),
        "radiance_density: density_weights[0]": lambda: radiance.radiance_density(
            points, *tables, [torch.zeros(4, 2, device="meta")]
        ),
        "render_gaussians: log_scales": lambda: gaussians.render_gaussians(*cloud[:2], points.to("meta"), *cloud[3:]),
        "render_gaussians: background": lambda: gaussians.render_gaussians(*cloud, background=far[:3]),
        "ssim_l1: target": lambda: ssim.ssim_l1(image, image.to("meta")),
        "ssim_l1: mask": lambda: ssim.ssim_l1(image, image, mask=torch.ones(4, 4, dtype=torch.bool, device="meta")),
        "composite: values[0]": lambda: compositing.composite(x, [far[:, None]], offsets),
        "prune: t_ends": lambda: compositing.prune_packed(x, x, far, offsets),
        "distortion: t_starts": lambda: distortion.distortion(x, far, x, offsets),
        "hash_encode: table": lambda: hash_encoding.hash_encode(points, table, layout),
        "march_grid: near": lambda: marching.march_grid(points, points, far, x, bits, **grid),
        "interval_points: t_ends": lambda: marching.interval_points(points, points, x, far, cells),
        "append_packed: second[0]": lambda: packing.append_packed([x], offsets, [far], offsets, cells[:1].long()),
        "sparse_adam_: grad": lambda: sparse_adam.sparse_adam_(x, far, x, x, step=1, lr=1.0),
        "raise_densities: values": lambda: occupancy.raise_densities(x, cells, far, 0.5),
    }


@pytest.mark.parametrize("where", list(_mixed_calls()))
def test_tensors_on_two_devices_are_named(where):
    wanted = rf"^{re.escape(where)}: expected a tensor on cpu, as \w+ is, got meta; move it with \.to\('cpu'\)$"
    with pytest.raises(ValueError, match=wanted):
        _mixed_calls()[where]()
