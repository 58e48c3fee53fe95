"""Look at a run in the browser: orbit, depth, normals, photographs, mesh, crop box, camera paths."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from ..parse import Up
from .render import Drawing


def main(arguments: list[str]) -> None:
    tyro.cli(run, prog="polyfield view", args=arguments)


def run(
    run: Annotated[Path, tyro.conf.Positional],
    port: int = 8080,
    host: str = "127.0.0.1",
    mesh: Path | None = None,
    renderer: Drawing = Drawing.AUTO,
    shadows: bool = False,
    occlusion: bool = False,
    up: Up = "-y",
    device: str = "auto",
) -> None:
    """Serve a page that shows RUN, until Ctrl-C.

    Args:
        run: folder that ``polyfield fit`` made; its photographs may be gone. Or a file of Gaussians, whoever made it.
        port: of the page.
        host: address to serve it on; anything but 127.0.0.1 opens it to other machines, without a password.
        mesh: a mesh in the scene's own units; by default RUN/mesh.glb, .ply or .obj if there is one.
        renderer: auto is the fit's own, or for a shape trace, which draws a distance's surface by sphere tracing.
        shadows: of a traced surface: let it stand in the sun's way.
        occlusion: of a traced surface: darken what neighbours surround.
        up: which axis points up in a file of Gaussians.
        device: auto (the GPU if it can be used), cpu, cuda or cuda:N.
    """
    from ..run import open_run
    from ..viewer import check_address, view_run

    check_address(host, port)
    opened = renderer.of(open_run(run, device, up=up), shadows, occlusion, "view")
    with view_run(opened, host=host, port=port, mesh=mesh) as viewer:
        print(f"{viewer.name}: {viewer.url}    (Ctrl-C ends it)", flush=True)
        viewer.wait()
