"""The page: a viser server with a painting thread behind it.

The page's frame is the scene's, in which the region of interest is [-1, 1]^3, with the scene's upward direction (the
mean of its cameras', +z where unknown) towards the top of the window. The browser draws frusta, mesh and boxes over the
painted picture and lets the picture's depth hide them.
"""

from __future__ import annotations

import contextlib
import io
import math
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...geometry import Aabb, transforms
from ...geometry.mesh_io import load_mesh, save_mesh
from ...geometry.mesh_ops import transform
from ..devices import CPU
from ..errors import UserError
from .address import check_address, wide_warning
from .guard import guarded
from .loop import Loop
from .painting import Stage
from .panel import Panel
from .photos import Photos
from .recorder import Recorder
from .turns import Turns

MESHES = ("mesh.glb", "mesh.ply", "mesh.obj")


def find_mesh(run: Path | None) -> Path | None:
    """The mesh that a run folder holds, if any."""
    return next((run / name for name in MESHES if run is not None and (run / name).is_file()), None)


class Viewer:
    """A page on ``host``:``port`` that shows ``stage``. ``with viewer:`` serves it; ``turns`` is shared with a fit.

    Raises UserError if the address cannot be had. Port 0 takes any free one; ``url`` says which.
    """

    def __init__(
        self,
        stage: Stage,
        *,
        name: str,
        scene_to_world: Tensor,
        photos: Photos,
        run: Path | None = None,
        mesh: Path | None = None,
        mesh_up: str = "z",
        up: tuple[float, float, float] = (0.0, 0.0, 1.0),
        home: Tensor | None = None,
        host: str = "127.0.0.1",
        port: int = 8080,
        turns: Turns | None = None,
        step: Callable[[], int] = lambda: 0,
    ) -> None:
        check_address(host, port)
        if mesh is not None and not mesh.is_file():
            raise UserError(f"view: --mesh: expected a file, found none at {mesh}; make one with `polyfield extract`")
        if (warning := wide_warning(host)) is not None:
            print(warning, file=sys.stderr)
        self.stage, self.name, self.photos, self.up, self.home = stage, name, photos, up, home
        self.scene_to_world, self.mesh_up = scene_to_world, mesh_up
        self.mesh = mesh or find_mesh(run)
        self.bounds: Aabb = stage.field.bounds.to(CPU)
        self.recorder = Recorder(None if run is None else run / "camera_path.json", scene_to_world)
        self.turns = turns or Turns(fitting=False)
        self.loop = Loop(stage, self.turns, step)
        self._panels: dict[int, Panel] = {}
        self._stopped = threading.Event()
        self.server = self._serve(host, port)
        shown = "localhost" if host in ("0.0.0.0", "::", "") else host
        self.url = f"http://{f'[{shown}]' if ':' in shown else shown}:{self.server.get_port()}"

    def _serve(self, host: str, port: int) -> Any:
        import viser

        with guarded(host), contextlib.redirect_stdout(io.StringIO()):  # its banner: the caller says where the page is
            server = viser.ViserServer(host=host, port=port, label=f"polyfield · {self.name}", verbose=False)
        if port not in (0, server.get_port()):  # somebody took it since it was checked
            server.stop()
            raise UserError(f"view: port: expected a free port, got {port} (in use); choose another with --port")
        server.gui.configure_theme(dark_mode=True, show_logo=False, show_share_button=False, control_width="medium")
        server.scene.set_up_direction(self.up)
        server.scene.world_axes.visible = False
        self._set_home(server)
        return server

    def _set_home(self, server: Any) -> None:
        """Where a new window looks from: through the first photograph, or from outside onto the middle."""
        up = torch.tensor(self.up)
        home = transforms.orbit(torch.zeros(3), 2.6, 8, 0.4, up)[1] if self.home is None else self.home.float()
        eye, forward = home[:3, 3], home[:3, 2]
        reach = max(
            float(-eye @ forward), 0.5
        )  # orbit about the point of the view's axis that is nearest to the middle
        server.initial_camera.position = tuple(eye.tolist())
        server.initial_camera.look_at = tuple((eye + reach * forward).tolist())
        server.initial_camera.up = self.up
        server.initial_camera.fov = math.radians(50)

    def __enter__(self) -> Viewer:
        self.loop.start()
        self.photos.start()
        self.server.on_client_connect(self._connect)
        self.server.on_client_disconnect(self._disconnect)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Close the page and end its threads."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        self.turns.finish()
        for panel in list(self._panels.values()):
            panel.close()
        self.loop.stop()
        with contextlib.redirect_stdout(io.StringIO()):
            self.server.stop()

    def wait(self, stop: Callable[[], bool] = lambda: False) -> None:
        """Until ``stop()`` or Ctrl-C."""
        try:
            while not self._stopped.wait(0.2) and not stop():
                pass
        except KeyboardInterrupt:
            pass

    def _connect(self, client: Any) -> None:
        self._panels[client.client_id] = Panel(self, client)

    def _disconnect(self, client: Any) -> None:
        panel = self._panels.pop(client.client_id, None)
        if panel is not None:
            panel.close()

    def refresh(self) -> None:
        """What all windows show changed."""
        for panel in list(self._panels.values()):
            if panel.splats is not None:
                panel.splats.changed()
            panel.refresh()

    def mesh_glb(self) -> tuple[bytes, bool]:
        """The mesh for the browser, moved from the user's units to the page's, and whether it has colours.

        Raises UserError if the file is none.
        """
        assert self.mesh is not None
        try:
            mesh = transform(
                load_mesh(self.mesh, up=self.mesh_up),
                transforms.similarity_inverse(self.scene_to_world.double()).float(),
            )
        except (ValueError, OSError) as error:
            raise UserError(f"view: {error}") from error
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "mesh.glb"
            save_mesh(mesh, file, up="y")  # as it stands: the page turns the whole scene to its own up
            return file.read_bytes(), mesh.colors is not None
