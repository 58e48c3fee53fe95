"""A run's mesh beside the true one, in the user's units: what ``polyfield evaluate RUN --mesh TRUTH`` adds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ..datasets.point_files import holds_points, read_points
from ..datasets.scene import SceneError
from ..geometry.mesh_io import ENDINGS, load_mesh
from ..geometry.mesh_ops import transform
from ..geometry.metrics import SAMPLES, compare
from ..geometry.types import Mesh
from .errors import UserError
from .run import Run

TRUTH = "truth"
LEAST = 4  # places that points of a surface have


def mesh_scores(run: Run, truth: str) -> dict[str, Any]:
    """What ``metrics.json`` says under ``mesh``; ``truth`` is a file, of a mesh or points, or "truth": the scene's."""
    true_surface = _truth(run, truth)  # first: extraction takes a while
    mesh, source = run_mesh(run)
    try:
        scores = compare(mesh, true_surface, samples=SAMPLES)
    except ValueError as error:
        raise UserError(f"evaluate: --mesh: {error}; give a mesh of triangles") from error
    return {
        "source": source,
        "truth": truth if truth == TRUTH else str(Path(truth).resolve()),
        "chamfer_percent": 100 * scores.chamfer,
        "chamfer_to_truth_percent": 100 * scores.to_truth,
        "chamfer_from_truth_percent": 100 * scores.from_truth,
        **{f"f_score_{100 * share:g}_percent": score for share, score in scores.f_scores.items()},
        "normal_consistency": scores.normal_consistency,
        "diagonal": scores.diagonal,
        "samples": SAMPLES,
    }


def run_mesh(run: Run) -> tuple[Mesh, str]:
    """The run's mesh and where it is from: the newest RUN/mesh.*, or a new one if there is none since the last fit."""
    from .commands.extract import extract_mesh

    files = [path for ending in ENDINGS if (path := run.folder / f"mesh{ending}").is_file()]
    fitted = run.folder / "scene.safetensors"
    since = fitted.stat().st_mtime if fitted.is_file() else float("inf")
    newest = max(files, key=lambda path: path.stat().st_mtime, default=None)
    if newest is not None and newest.stat().st_mtime >= since:
        return load_mesh(newest), newest.name
    return extract_mesh(run), "extracted with the options that `polyfield extract` has by default"


def _truth(run: Run, truth: str) -> Mesh | Tensor:
    """A surface, or points of one (N, 3)."""
    path = Path(truth)
    if truth != TRUTH or path.is_file():
        try:
            return _points(path) if path.is_file() and holds_points(path) else load_mesh(path)
        except (OSError, ValueError, SceneError) as error:
            raise UserError(f"evaluate: --mesh: {error}") from error
    scene = run.scene()
    if scene.mesh is None:
        raise UserError(
            f"evaluate: --mesh truth: expected a scene that knows its true surface, got {scene.name}, which does not; "
            "give a mesh file"
        )
    return transform(scene.mesh, run.asked.facts.matrix)


def _points(path: Path) -> Tensor:
    """(N, 3) of a file, which must lie in a few places at least: distances are said beside its size."""
    points = read_points(path)[0]
    places = len(points.unique(dim=0))
    if places < LEAST:
        raise UserError(
            f"evaluate: --mesh: {path}: expected points of a surface, got {places} finite places; give a scan or a mesh"
        )
    return points


def summary(scores: dict[str, Any]) -> str:
    """For people."""
    f_scores = ", ".join(f"{scores[key]:.4f} at {key.split('_')[2]} %" for key in scores if key.startswith("f_score_"))
    normals = scores["normal_consistency"]
    return (
        f"mesh ({scores['source']}): Chamfer distance {scores['chamfer_percent']:.3f} % of the diagonal "
        f"({scores['chamfer_to_truth_percent']:.3f} to the truth, {scores['chamfer_from_truth_percent']:.3f} from it), "
        f"F-score {f_scores}"
        + (f", normal consistency {normals:.4f}" if normals is not None else "; points tell nothing of normals")
    )
