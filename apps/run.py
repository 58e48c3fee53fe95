"""A run is a folder: what was asked (``config.json``), checkpoints, and the fitted scene (``scene.safetensors``).

RUN/config.json          recipe, its configuration, data, seed, and what of the scene a fitted field depends on
RUN/scene.safetensors    field and renderer as fitted, without optimizer state
RUN/checkpoints/         step_*.safetensors, the newest two
RUN/log.jsonl            one line per report while fitting
RUN/metrics.json         written by ``polyfield evaluate``
RUN/mesh.*               written by ``polyfield extract``
RUN/previews/            pictures made while fitting
RUN/preview.png          of a shape, at the end
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import polyfield

from ..datasets import demo
from ..datasets.scene import LoadOptions, MaskUse, Scene, open_scene
from ..renderers.points import PointRenderer
from ..renderers.sphere_tracing import SphereTracer
from ..renderers.volume import VolumeRenderer
from . import discover
from .checkpoint import load_tensors, save_tensors, write_whole
from .config_io import from_json, to_json
from .devices import CPU, choose_device
from .errors import UserError
from .intrinsics import with_refined

RECIPES = f"{__package__}.recipes"


@dataclass(frozen=True)
class SceneFacts:
    """What a fitted field depends on, so that it opens without its photographs."""

    cascades: int
    near: float
    has_alpha: bool
    scene_to_world: tuple[tuple[float, ...], ...]  # 4 x 4 similarity
    name: str
    up: tuple[float, float, float] = (0.0, 0.0, 1.0)  # scene frame, unit
    home: tuple[tuple[float, ...], ...] | None = None  # 4 x 4 camera_to_world: a view to begin with, scene frame
    masked: bool = True  # whether photographs have masks; of runs that do not say so, as they were fitted
    plain: tuple[float, float, float] | None = None  # the colour that opaque photographs were cut out of

    @staticmethod
    def of(scene: Scene) -> SceneFacts:
        return SceneFacts(
            scene.cascades,
            float(scene.near),
            scene.has_alpha,
            matrix_rows(scene.scene_to_world),
            scene.name,
            tuple(scene.up.tolist()),
            matrix_rows(home_view(scene)) if scene.frames else None,
            any(frame.mask is not None for frame in scene.frames),
            None if scene.background is None else tuple(scene.background.tolist()),
        )

    @property
    def backdrop(self) -> tuple[float, float, float]:
        """The colour that pictures have behind the scene."""
        if self.plain is not None:
            return self.plain
        return (1.0, 1.0, 1.0) if self.has_alpha else (0.0, 0.0, 0.0)

    @property
    def matrix(self) -> Tensor:
        """(4, 4) scene_to_world."""
        return torch.tensor(self.scene_to_world, device=CPU)


@dataclass(frozen=True)
class Asked:
    """What a run was asked to do: the content of ``config.json``."""

    recipe: str
    config: Any  # the recipe's Config
    data: str  # absolute path, or the name of a built-in scene
    downscale: int
    seed: int
    steps: int | None  # the budget: steps or seconds
    seconds: float | None
    facts: SceneFacts
    masks: MaskUse = MaskUse.IGNORE

    def save(self, folder: Path) -> None:
        content = {
            "polyfield": polyfield.__version__,
            **{k: to_json(getattr(self, k)) for k in self.__dataclass_fields__},
        }
        text = json.dumps(content, indent=2) + "\n"
        write_whole(folder / "config.json", lambda path: path.write_text(text, encoding="utf-8"))

    @staticmethod
    def load(folder: Path) -> Asked:
        """Raises UserError if the folder is no run."""
        path = folder / "config.json"
        if not path.is_file():
            raise UserError(
                f"{folder}: expected a run folder with config.json, found none; "
                "give the folder that `polyfield fit` made"
            )
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            config = discover.load(RECIPES, content["recipe"], f"{path}: recipe").Config
            return Asked(
                recipe=content["recipe"],
                config=from_json(config, content["config"], f"{path}: config"),
                data=content["data"],
                downscale=int(content["downscale"]),
                seed=int(content["seed"]),
                steps=content["steps"],
                seconds=content["seconds"],
                facts=_facts(content["facts"]),
                masks=from_json(MaskUse, content.get("masks", "ignore"), f"{path}: masks"),
            )
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: expected a run's configuration, got {error!r}; fit again, or restore the file"
            ) from error


def home_view(scene: Scene) -> Tensor:
    """(4, 4) camera_to_world of the photograph that looks down on the scene most nearly as one looks at a table."""
    down = [-float(frame.camera.forward @ scene.up) for frame in scene.frames]
    best = min(range(len(down)), key=lambda i: abs(down[i] - 0.4))
    return scene.frames[best].camera.camera_to_world


def matrix_rows(matrix: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in matrix.tolist())


def _facts(data: dict[str, Any]) -> SceneFacts:
    def frozen(value: Any) -> Any:
        return tuple(map(frozen, value)) if isinstance(value, list) else value

    return SceneFacts(**{name: frozen(value) for name, value in data.items()})


@dataclass(frozen=True)
class Run:
    """A fitted scene, ready to render."""

    folder: Path
    asked: Asked
    field: nn.Module
    renderer: VolumeRenderer | PointRenderer | SphereTracer
    step: int
    elapsed: float
    intrinsics: Mapping[str, Tensor] = field(default_factory=dict)  # as refined: see ``apps.intrinsics``
    of_file: bool = False  # a file of Gaussians, see ``apps.splat_file``
    mesh_up: str = "z"  # the axis that points up in its meshes, for files that have one: see ``save_mesh``

    @property
    def device(self) -> torch.device:
        """Where field and renderer are."""
        return self.renderer.device

    @property
    def of_shape(self) -> bool:
        """Whether it was fitted to a shape: only ``tracing`` draws it."""
        return hasattr(self.asked.config, "open_data")

    @property
    def has_photographs(self) -> bool:
        """Whether it was fitted to photographs."""
        return not (self.of_file or self.of_shape)

    def scene(self) -> Scene:
        """The photographs or the shape it was fitted to, read again from where they were; with refined intrinsics.

        Raises UserError if there never were any.
        """
        asked = self.asked
        if self.of_file:
            raise UserError(
                f"{asked.data}: expected a run with its photographs, got a file of Gaussians, which has none"
            )
        scene = open_data(asked.config, asked.data, asked.downscale, asked.masks)
        return with_refined(asked.config.prepare(scene), self.intrinsics)


def open_data(config: Any, data: str, downscale: int, masks: MaskUse = MaskUse.IGNORE) -> Scene:
    """What a run is, or was, fitted to: an absolute path, or a built-in scene's name, which no folder hides.

    A recipe whose data are no photographs opens them itself (``open_data`` of its ``Config``).
    """
    options = LoadOptions(downscale=downscale, masks=masks)
    if hasattr(config, "open_data"):
        return config.open_data(data, options)
    return demo.load(Path(data), options) if data in demo.NAMES else open_scene(data, options)


def save_scene(folder: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write ``scene.safetensors``: what rendering needs (``Job.scene_tensors``)."""
    save_tensors(folder / "scene.safetensors", tensors, metadata)


def open_run(folder: Path | str, device: str | torch.device = "auto", *, up: str = "-y") -> Run:
    """Open a run's fitted scene; while it is still being fitted, its newest checkpoint. Or a file of Gaussians.

    ``device``: as ``--device`` has it, see ``devices.choose_device``; it need not be the one that it was fitted on.
    ``up``: the axis that points up in a file of Gaussians.

    Raises UserError if the folder is no run, nothing has been fitted yet, or the device cannot be used.
    """
    from .checkpoint import load_newest
    from .splat_file import is_splat_file, open_splat_file

    folder = Path(folder)
    if is_splat_file(folder):
        return open_splat_file(folder, choose_device(device), up)
    asked = Asked.load(folder)
    path = folder / "scene.safetensors"
    loaded = load_tensors(path) if path.is_file() else load_newest(folder / "checkpoints")
    if loaded is None:
        raise UserError(
            f"{folder}: expected a fitted scene or a checkpoint, found none; let `polyfield fit --resume` finish first"
        )
    tensors, metadata = loaded
    model, renderer = asked.config.build_model(asked.facts, choose_device(device))
    for prefix, part in (("field.", model), ("renderer.", renderer)):
        part.load_state_dict({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)})
    renderer.eval()
    refined = {k.partition(".")[2]: v for k, v in tensors.items() if k.startswith("intrinsics.")}
    return Run(folder, asked, model, renderer, int(metadata["step"]), float(metadata["elapsed"]), refined)
