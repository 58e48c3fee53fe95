"""A short check of every kernel family on this machine, for ``polyfield doctor``: name -> largest error.

Each compares the instruction set in use with a few lines of torch on a small input; within ``torch.device("cuda")``,
the CUDA kernels of that device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator("cpu").manual_seed(seed), device="cpu").to(_device())


def _device() -> torch.device:
    return torch.empty(0).device


def _error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max())


def check_sh_basis() -> float:
    from ..cuda.sh_basis import sh_basis

    d = torch.nn.functional.normalize(_random(1001, 3) - 0.5, dim=-1)
    x, y, z = d.unbind(-1)
    wanted = torch.stack([torch.full_like(x, 0.2820948), -0.4886025 * y, 0.4886025 * z, -0.4886025 * x], -1)
    return _error(sh_basis(d, 1), wanted)


def check_mlp() -> float:
    from ..cuda.mlp import mlp

    x, first, last = _random(777, 32) - 0.5, _random(64, 32, seed=1) - 0.5, _random(16, 64, seed=2) - 0.5
    return _error(mlp(x, [first, last]), (x @ first.T).relu() @ last.T)


def check_mlp_bfloat16() -> float:
    from ..cuda.mlp import mlp
    from ..cuda.native import has_bfloat16, on_gpu

    # Small whole numbers, which bfloat16 holds exactly: outputs and gradients must be right to the bit.
    shapes = ((777, 32), (64, 32), (16, 64))
    x, first, last = ((_random(*s, seed=i) * 4 - 2).round().requires_grad_() for i, s in enumerate(shapes))
    if on_gpu(x) and not has_bfloat16(x):
        return 0.0  # an old GPU, whose networks are in float32
    found, wanted = mlp(x, [first, last], bfloat16=True), (x @ first.T).relu() @ last.T
    grads = (torch.autograd.grad(y.sum(), (x, first, last)) for y in (found, wanted))
    return max(_error(found.detach(), wanted.detach()), *(_error(a, b) for a, b in zip(*grads, strict=True)))


def check_hash_encode() -> float:
    from ..cuda.hash_encoding import HashLayout, hash_encode

    # One dense level whose entries are a linear function of the vertex: interpolation must return it exactly.
    layout = HashLayout.build(levels=1, features=1, log2_size=15, base_resolution=16, finest_resolution=16)
    points = _random(1001, 3)
    table = (torch.arange(layout.entries) % 17 / 16).float()[:, None]  # vertices lie x fastest, 17 along each axis
    return _error(hash_encode(points, table, layout)[:, 0], points[:, 0])


def check_radiance() -> float:
    from ..cuda.hash_encoding import HashLayout
    from ..cuda.native import has_bfloat16, on_gpu
    from ..cuda.radiance import radiance

    # At vertices features are entries of the table; numbers are such that bfloat16 holds them, but the hidden colours.
    layout = HashLayout.build(levels=1, features=4, log2_size=15, base_resolution=16, finest_resolution=16)
    sizes = ((layout.entries, 4), (16, 4), (8, 16), (16, 11), (3, 16), (300, 3))
    table, *weights, extras = ((_random(*s, seed=i) * 2 - 1).round() for i, s in enumerate(sizes))
    density, color = ([(w / 4).requires_grad_() for w in pair] for pair in (weights[:2], weights[2:]))
    vertex = (_random(300, 3, seed=9) * 16).round()
    bfloat16 = not on_gpu(table) or has_bfloat16(table)
    found = radiance(vertex / 16, extras, table, layout, density, color, bfloat16=bfloat16)
    entries = table[(vertex[:, 0] + 17 * vertex[:, 1] + 289 * vertex[:, 2]).long()]
    geometry = (entries @ density[0].T).relu() @ density[1].T
    hidden = (torch.cat([extras, geometry], -1) @ color[0].T).relu()
    if bfloat16:
        hidden = hidden + (hidden.bfloat16().float() - hidden).detach()
    outputs = geometry[:, 0], hidden @ color[1].T
    wanted = outputs[0].exp(), outputs[1].sigmoid()
    leaves, slopes = (density[1], *color), (1 / wanted[0], 1 / (wanted[1] * (1 - wanted[1])))
    grads = torch.autograd.grad(found, leaves, [s.detach() for s in slopes])
    by_hand = torch.autograd.grad(outputs, leaves, [torch.ones_like(o) for o in outputs])
    errors = [_error(a.detach(), b.detach()) for a, b in zip(found, wanted, strict=True)]
    return max(*errors, *(_error(a, b) / 1e3 for a, b in zip(grads, by_hand, strict=True)))


def check_composite() -> float:
    from ..cuda.compositing import composite

    alphas, values = _random(33) * 0.9, _random(33, 3, seed=1)
    weights, opacities, (colors,) = composite(alphas, [values], torch.tensor([0, 33], dtype=torch.int32))
    wanted = alphas * torch.cat([torch.ones(1), (1 - alphas).cumprod(0)[:-1]])
    return max(_error(weights, wanted), _error(colors[0], wanted @ values), _error(opacities, wanted.sum()[None]))


def check_marching() -> float:
    from ..geometry import Rays
    from ..geometry.occupancy import OccupancyGrid

    # Rays along x through a grid that is full everywhere: intervals must cover [-1, 1] without gaps.
    grid = OccupancyGrid(32, 1, 1.0)
    grid.bits.fill_(-1)
    origins = torch.cat([torch.full((9, 1), -3.0), _random(9, 2) - 0.5], -1)
    rays = Rays(origins, torch.tensor([[1.0, 0, 0]]).expand(9, 3).contiguous(), torch.zeros(9), torch.full((9,), 100.0))
    step = 1 / 32
    samples = grid.march(rays, step=step)
    length = torch.zeros(9).index_add(0, samples.ray_indices.long(), samples.t_ends - samples.t_starts)
    return max(0.0, _error(length, torch.full((9,), 2.0)) - 2 * step)


def check_marching_cubes() -> float:
    from ..cuda.marching_cubes import marching_cubes

    axis = torch.linspace(-1, 1, 33)
    x, y, z = torch.meshgrid(axis, axis, axis, indexing="ij")
    vertices, _ = marching_cubes((x.square() + y.square() + z.square()).sqrt(), 0.7)
    return max(0.0, float(((vertices / 16 - 1).norm(dim=-1) - 0.7).abs().max()) - 2e-3)


def check_adam() -> float:
    from ..fields.optimizer import Adam

    ours, theirs = (torch.nn.Parameter(torch.ones(1000)) for _ in range(2))
    optimizers = [Adam([ours], lr=0.1), torch.optim.Adam([theirs], lr=0.1, betas=(0.9, 0.99), eps=1e-15)]
    for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
        parameter.grad = _random(1000) - 0.5
        optimizer.step()
    return _error(ours.detach(), theirs.detach())


def check_sh_adam() -> float:
    from ..cuda.sh_adam import sh_adam_

    # The first step has the length of the rate, against the gradient's sign.
    sh, moments, factors = torch.zeros(100, 4, 3), [torch.zeros(100, 4, 3) for _ in range(2)], _random(100, 6) + 0.1
    sign = torch.tensor([1.0, -1, 1, -1])[:, None].expand(100, 4, 3)
    sh_adam_(sh, factors, *moments, degree=1, step=1, lr=0.1)
    return max(_error(sh, -0.1 * sign), float(factors[:, 3:].abs().max()))


def check_gaussians() -> float:
    from ..cuda.gaussians import render_gaussians

    # One round Gaussian in front of the camera: its colour and opacity fall off as exp(-1/2 d^2 / (scale^2 + blur)).
    K, size = torch.tensor([[50.0, 0, 20], [0, 50, 16], [0, 0, 1]]), (40, 32)
    means, quats, logits = (
        torch.tensor([[0.0, 0, 1]]),
        torch.tensor([[1.0, 0, 0, 0]]),
        torch.zeros(1, requires_grad=True),
    )
    scales, sh = torch.full((1, 3), 0.1).log(), torch.full((1, 1, 3), 0.5)
    splats = render_gaussians(means, quats, scales, logits, sh, K, torch.eye(4), *size)
    x, y = torch.arange(40) - 19.5, torch.arange(32) - 15.5
    wanted = 0.5 * torch.exp(-0.5 * (x.square() + y.square()[:, None]) / (25 + 0.3))
    wanted = torch.where(wanted < 1 / 255, torch.zeros(()), wanted)
    (slope,) = torch.autograd.grad(splats.alphas.sum(), logits)
    by_hand = 0.5 * wanted.sum()  # d sigmoid / d logit = 1/2 sigmoid at 0
    return max(
        _error(splats.alphas.detach(), wanted),
        _error(splats.colors.detach(), (wanted * (0.5 + 0.5 * 0.2820948))[..., None].expand(*splats.colors.shape)),
        float((slope / by_hand - 1).abs().max()),
    )


def check_ssim() -> float:
    from ..cuda.ssim import ssim_l1

    line = torch.exp(-(torch.arange(11) - 5.0).square() / 4.5)
    window = (torch.outer(line, line) / line.sum().square())[None, None]
    x, y = _random(33, 21, 1).requires_grad_(), _random(33, 21, 1, seed=1)
    mean = lambda image: torch.nn.functional.conv2d(image[None, None, ..., 0], window, padding=5)  # noqa: E731
    mx, my = mean(x), mean(y)
    structure = (2 * mx * my + 1e-4) * (2 * (mean(x * y) - mx * my) + 9e-4)
    structure = structure / ((mx**2 + my**2 + 1e-4) * (mean(x * x) - mx**2 + mean(y * y) - my**2 + 9e-4))
    losses = ssim_l1(x, y), 0.8 * (x - y).abs().mean() + 0.2 * (1 - structure.mean())
    found, wanted = (torch.autograd.grad(loss, x)[0] * x.numel() / 10 for loss in losses)
    return max(_error(*(loss.detach() for loss in losses)), _error(found, wanted))


CHECKS: dict[str, Callable[[], float]] = {
    "sh_basis": check_sh_basis,
    "mlp": check_mlp,
    "mlp bfloat16": check_mlp_bfloat16,
    "hash_encode": check_hash_encode,
    "radiance": check_radiance,
    "march_grid": check_marching,
    "composite": check_composite,
    "marching_cubes": check_marching_cubes,
    "sparse_adam": check_adam,
    "sh_adam": check_sh_adam,
    "gaussians": check_gaussians,
    "ssim": check_ssim,
}
