"""Measure a run: PSNR, SSIM, LPIPS on its held-out views, a contact sheet, and its mesh beside the true one; of a
shape, the mesh alone."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..parse import parse


def main(arguments: list[str]) -> None:
    parse(run, "evaluate", arguments)


def run(
    run: Annotated[Path, tyro.conf.Positional],
    views_on_sheet: int = 6,
    mesh: str | None = None,
    resolution: int = 512,
    device: str = "auto",
    half_fit: bool = False,
    oversampling: int | None = None,
) -> None:
    """Render every held-out view, and write RUN/metrics.json and RUN/contact_sheet.png (photo, render, error, depth).

    A run of a shape is meshed and held against the shape: Chamfer distance, F-score, normal consistency.

    Args:
        run: folder that ``polyfield fit`` made.
        views_on_sheet: rows of the contact sheet, spread over the held-out views.
        mesh: the true surface, a .glb, .ply or .obj file of a mesh or a .ply file of points in the scene's own units,
            or `truth` for the one that the built-in scene knows: RUN/mesh.* (if newer than the fit, else a mesh
            extracted now) is compared with it.
        resolution: cells along the longest edge of the mesh, of a shape.
        device: auto (the GPU if it can be used), cpu, cuda or cuda:N.
        half_fit: of a run with --exposure gain or codes: fit each held-out photograph's own to its left half, and
            measure the right half alone, as NeRF-W does.
        oversampling: rays along a pixel, whose mean is compared; by default 2 (so 4 rays), of Gaussians 1.
    """
    from ..devices import enough_memory
    from ..errors import check_least
    from ..mesh_scores import summary
    from ..run import open_run

    check_least("evaluate", oversampling=(oversampling, 1))
    opened = open_run(run, device)
    with enough_memory("evaluate", opened.device, "fit with a smaller --march.chunk or --downscale"):
        metrics = evaluate(opened, views_on_sheet, mesh, resolution, half_fit, oversampling)
    if "chamfer" in metrics:
        f_score = ", ".join(f"{score:.4f} at {percent} %" for percent, score in metrics["f_score"].items())
        print(f"Chamfer distance {metrics['chamfer']:.3g}, {metrics['chamfer_percent']:.4f} % of the diagonal")
        print(f"  F-score {f_score}; normal consistency {metrics['normal_consistency']:.4f}\n  {run}/metrics.json")
        return
    scores = f"PSNR {metrics['psnr']:.2f} dB, SSIM {metrics['ssim']:.4f}"
    scores += f", LPIPS {metrics['lpips']:.4f}" if metrics["lpips"] is not None else " (LPIPS: no weights at hand)"
    print(f"{len(metrics['views'])} held-out views at {metrics['width']}x{metrics['height']}: {scores}")
    if half_fit:
        print(f"  right halves, after fitting the left; without it PSNR {metrics['psnr_not_fitted']:.2f} dB")
    if mesh is not None:
        print(summary(metrics["mesh"]))
    print(f"  {run}/metrics.json\n  {run}/contact_sheet.png")


def evaluate(
    run: Any,
    views_on_sheet: int = 6,
    mesh: str | None = None,
    resolution: int = 512,
    half_fit: bool = False,
    oversampling: int | None = None,
) -> dict[str, Any]:
    """The same for an open run; returns what it writes."""
    import torch

    from ...renderers.metrics import lpips, psnr, ssim
    from ...renderers.oversampling import oversampled
    from ..devices import CPU, wait
    from ..errors import UserError
    from ..half_fit import fitted_half, load_appearance, right_half
    from ..images import depth_picture, error_picture, photograph, save_png
    from ..mesh_scores import mesh_scores

    scene = run.scene()
    appearance = load_appearance(run) if half_fit else None
    if not scene.frames:
        if mesh is not None:
            raise UserError("evaluate: --mesh: expected a run that was fitted to photographs, got one of a shape")
        return _write(run, _against_shape(run, scene, resolution))
    if not scene.test:
        raise UserError(f"evaluate: {scene.name}: expected held-out views, found none; the scene has too few images")
    surface = {} if mesh is None else {"mesh": mesh_scores(run, mesh)}
    spread = torch.linspace(0, len(scene.test) - 1, min(views_on_sheet, len(scene.test)), device=CPU)
    rows = set(spread.round().int().tolist())
    views, sheet = [], []
    perceptual: bool = True
    for index, frame in enumerate(scene.test):
        start = time.perf_counter()
        pixels = oversampled(run.renderer, run.field, frame.camera, oversampling)
        wait(run.device)
        seconds = time.perf_counter() - start
        target = photograph(frame, run.renderer)
        mask = None if frame.mask is None else frame.mask.to(run.device)
        colors, shown, drawn = pixels.colors, target, pixels.colors
        if appearance is not None:
            drawn = fitted_half(appearance, colors, target, mask)
            plain, colors, shown = (right_half(x) for x in (colors, drawn, target))
            mask = None if mask is None else right_half(mask)
        view = {
            "name": frame.name,
            "psnr": psnr(colors, shown, mask),
            "ssim": ssim(colors, shown, mask),
            "lpips": lpips(colors, shown) if perceptual else None,
            **({} if appearance is None else {"psnr_not_fitted": psnr(plain, shown, mask)}),
            "masked_pixels": 0 if frame.mask is None else int((~frame.mask).sum()),
            "seconds": round(seconds, 4),
        }
        perceptual = view["lpips"] is not None
        views.append(view)
        if index in rows:
            error = error_picture(drawn, target)[..., None].expand(-1, -1, 3)
            sheet.append(torch.cat([target, drawn.clamp(0, 1), error, depth_picture(pixels.depths, pixels.alphas)], 1))
    mean = lambda key: None if views[0][key] is None else sum(v[key] for v in views) / len(views)  # noqa: E731
    fitted = {} if appearance is None else {"half_fit": True, "psnr_not_fitted": mean("psnr_not_fitted")}
    camera = scene.test[0].camera
    metrics = {
        "psnr": mean("psnr"),
        "ssim": mean("ssim"),
        "lpips": mean("lpips"),
        "views": views,
        "width": camera.width,
        "height": camera.height,
        "oversampling": oversampling or run.renderer.oversampling,
    }
    width = max(row.shape[1] for row in sheet)
    padded = [torch.nn.functional.pad(row, (0, 0, 0, width - row.shape[1])) for row in sheet]
    save_png(run.folder / "contact_sheet.png", torch.cat(padded))
    return _write(run, metrics | fitted | surface)


def _against_shape(run: Any, scene: Any, resolution: int) -> dict[str, Any]:
    """The run's mesh and the shape that it was fitted to."""
    from ...geometry.mesh_ops import transform
    from ...geometry.transforms import similarity_inverse
    from ..shape_metrics import compare
    from .extract import extract_mesh

    mesh = extract_mesh(run, resolution=resolution)
    scores = compare(transform(mesh, similarity_inverse(scene.scene_to_world)), scene, signed=run.field.signed)
    return scores | {"resolution": resolution}


def _write(run: Any, metrics: dict[str, Any]) -> dict[str, Any]:
    """RUN/metrics.json, with how the run came about."""
    import torch

    from ...cuda import native
    from ..checkpoint import write_whole
    from ..devices import describe

    metrics = metrics | {
        "fit_seconds": round(run.elapsed, 2),
        "fit_steps": run.step,
        "device": describe(run.device),
        "threads": torch.get_num_threads(),
        "instruction_set": native.isa(),
    }
    text = json.dumps(metrics, indent=2) + "\n"
    write_whole(run.folder / "metrics.json", lambda path: path.write_text(text, encoding="utf-8"))
    return metrics
