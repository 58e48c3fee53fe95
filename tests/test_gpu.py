"""What only a GPU can show, with ``--device cuda``: how often a step waits, CUDA graphs, torch.compile, whole fits."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from polyfield.apps.devices import CPU
from polyfield.apps.fit import Budget, fit
from polyfield.apps.fit_reports import Checkpoints
from polyfield.apps.recipes import ngp
from polyfield.cuda.compositing import composite
from polyfield.cuda.hash_encoding import HashLayout, hash_encode
from polyfield.cuda.sh_basis import sh_basis
from polyfield.datasets.scene import open_scene

pytestmark = pytest.mark.cuda
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
LAYOUT = HashLayout.build(levels=4, log2_size=12, finest_resolution=128)


@pytest.fixture(scope="module")
def scene():
    return open_scene("demo", downscale=4)


def test_a_step_waits_three_times(scene, device):
    """For the samples met, for those that matter, and (as an event) for the losses. The profiler's own wait is one."""
    job = ngp.Config(samples_per_step=1 << 14).build(scene, device=device)
    fit(job, Budget(steps=100), stop=lambda: job.step >= 20)
    torch.cuda.synchronize(device)
    with torch.profiler.profile(activities=list(torch.profiler.supported_activities())) as seen:
        fit(job, Budget(steps=100), stop=lambda: job.step >= 30)
    counts = {event.key: event.count for event in seen.key_averages() if event.key in WAITS}
    assert sum(counts.values()) <= 3 * 10 + 1, counts


SANITIZED = """
import torch
from polyfield.apps.self_check import CHECKS
with torch.device("{device}"):
    errors = {{name: check() for name, check in CHECKS.items()}}
assert all(error < 1e-4 for error in errors.values()), errors
"""


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
def test_compute_sanitizer_finds_nothing(tool, device):
    """Every kernel family, as the doctor checks it; each tensor in memory of its own, so that its ends are seen."""
    sanitizer = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed; it comes with the CUDA toolkit")
    code = SANITIZED.format(device=device)
    command = [sanitizer, f"--tool={tool}", "--error-exitcode=9", sys.executable, "-c", code]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=580, env=environment)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def _inputs(device, seed=0):
    g = torch.Generator(device).manual_seed(seed)
    points = torch.rand(1024, 3, generator=g, device=device)
    table = torch.rand(LAYOUT.entries, 2, generator=g, device=device)
    alphas = torch.rand(1024, generator=g, device=device)
    offsets = torch.arange(0, 1025, 32, device=device, dtype=torch.int32)
    return points, table, alphas, offsets


def _ops(points, table, alphas, offsets):
    features = hash_encode(points, table, LAYOUT)
    return composite(alphas, [features, sh_basis(points, 3)], offsets)[2]


def test_ops_in_a_cuda_graph(device):
    inputs = _inputs(device)
    _ops(*inputs)  # kernels are loaded
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device), torch.cuda.graph(graph):
        captured = _ops(*inputs)
    for tensor, other in zip(inputs, _inputs(device, seed=1), strict=True):
        tensor.copy_(other)
    graph.replay()
    for found, wanted in zip(captured, _ops(*_inputs(device, seed=1)), strict=True):
        torch.testing.assert_close(found, wanted)


def test_ops_under_torch_compile(device):
    inputs = _inputs(device)
    for found, wanted in zip(torch.compile(_ops, fullgraph=True)(*inputs), _ops(*inputs), strict=True):
        torch.testing.assert_close(found, wanted)


def test_a_fit_learns_as_on_a_cpu_and_moves_to_one(scene, device, tmp_path):
    config, losses = ngp.Config(samples_per_step=1 << 14), []
    job = config.build(scene, device=device)
    fit(job, Budget(steps=300), [*config.after_step(), lambda report: losses.append(report.terms["photometric"])])
    assert sum(losses[-20:]) < 0.2 * sum(losses[:20])
    Checkpoints(tmp_path, 1.0).save(job)
    here = config.build(scene, device=CPU)
    here.restore(*Checkpoints(tmp_path, 1.0).load())
    camera = scene.test[0].camera
    pictures = [j.renderer.render(j.field, camera).pixels.colors.to(CPU) for j in (job, here)]
    assert float((pictures[0] - pictures[1]).square().mean()) < 1e-3


def test_random_numbers_resume_to_the_bit(scene, device, tmp_path):
    """Not the parameters: a table's gradients are added in whatever order they come."""
    config = ngp.Config(samples_per_step=1 << 12)
    job = config.build(scene, device=device)
    fit(job, Budget(steps=100), config.after_step(), stop=lambda: job.step >= 10)
    Checkpoints(tmp_path, 1.0).save(job)
    other = config.build(scene, seed=1, device=device)
    other.restore(*Checkpoints(tmp_path, 1.0).load())
    drawn = [
        (j.batches.draw()[0].directions, torch.rand(9, device=device, generator=j.generator)) for j in (job, other)
    ]
    for a, b in zip(*drawn, strict=True):
        assert torch.equal(a, b)
