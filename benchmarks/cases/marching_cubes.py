"""Marching cubes on a dense 512^3 grid with about 4 million triangles, against VTK, scikit-image and PyMCubes."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ.setdefault("VTK_SMP_BACKEND_IN_USE", "STDThread")

import torch
from polyfield.cuda.marching_cubes import marching_cubes

from ..measure import Row, pair, seconds


def gyroid(size: int, periods: float) -> torch.Tensor:
    """sin x cos y + sin y cos z + sin z cos x over ``periods`` periods: a surface that is everywhere."""
    a = torch.linspace(0, periods * 2 * torch.pi, size)
    x, y, z = a[:, None, None], a[None, :, None], a[None, None, :]
    return (x.sin() * y.cos() + y.sin() * z.cos() + z.sin() * x.cos()).contiguous()


def run(device: str) -> Iterator[Row]:
    values = gyroid(512, 2.0)
    triangles = len(marching_cubes(values, 0.0)[1])
    name = f"marching cubes 512^3, {triangles / 1e6:.1f}M triangles"
    for peer, call, aim in _peers(values):
        ours, theirs = pair(lambda: marching_cubes(values, 0.0), call, budget=1.0, least=3, warmup=1)
        yield Row(name, theirs / ours, ours * 1e3, "ms", peer, aim)
    yield Row("marching cubes 512^3, alone", None, seconds(lambda: marching_cubes(values, 0.0)) * 1e3, "ms", "")


def _peers(values: torch.Tensor):
    array = values.numpy()
    try:
        import vtk
        from vtkmodules.util import numpy_support

        vtk.vtkSMPTools.SetBackend("STDThread")
        vtk.vtkSMPTools.Initialize(torch.get_num_threads())
        image = vtk.vtkImageData()
        image.SetDimensions(*reversed(array.shape))
        image.GetPointData().SetScalars(numpy_support.numpy_to_vtk(array.ravel(), deep=False))

        def flying_edges():
            edges = vtk.vtkFlyingEdges3D()
            edges.SetInputData(image)
            edges.ComputeNormalsOff()
            edges.ComputeGradientsOff()
            edges.ComputeScalarsOff()
            edges.SetValue(0, 0.0)
            edges.Update()
            return edges.GetOutput().GetNumberOfPolys()

        yield (
            f"VTK {vtk.VTK_VERSION} flying edges, {vtk.vtkSMPTools.GetEstimatedNumberOfThreads()} threads",
            flying_edges,
            "2.5x",
        )
    except ImportError:
        print("marching_cubes: vtk is not installed: pip install 'polyfield[benchmark]'")
    try:
        from skimage.measure import marching_cubes as skimage

        yield "scikit-image", lambda: skimage(array, 0.0), "15x"
    except ImportError:
        print("marching_cubes: scikit-image is not installed: pip install 'polyfield[benchmark]'")
    try:
        import mcubes

        yield "PyMCubes", lambda: mcubes.marching_cubes(array, 0.0), "15x"
    except ImportError:
        print("marching_cubes: PyMCubes is not installed: pip install 'polyfield[benchmark]'")
