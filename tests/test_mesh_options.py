"""Options of `polyfield extract` that a method does not have are refused, not ignored."""

from types import SimpleNamespace

import pytest
import torch
from polyfield.apps import meshing
from polyfield.apps.commands.extract import extract_mesh
from polyfield.apps.errors import UserError
from polyfield.apps.mesh_options import MeshOptions, Method
from polyfield.geometry import Aabb, Mesh

ASKED = SimpleNamespace(recipe="ngp", facts=SimpleNamespace(matrix=torch.eye(4)))
TRIANGLE = Mesh(torch.eye(3), torch.tensor([[0, 1, 2]]), torch.eye(3), torch.ones(3, 3))


def run_of(**field):
    return SimpleNamespace(
        asked=ASKED, of_shape=False, device=torch.device("cpu"), field=SimpleNamespace(bounds=Aabb.cube(), **field)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(trim=0.0), "--trim: expected --method poisson as well, got opacity, which trims nothing; drop one"),
        (dict(trim=1.5, method=Method.TSDF), "--trim: expected --method poisson as well, got tsdf"),
        (dict(trim=-1.0, method=Method.POISSON), "--trim: expected at least 0, got -1"),
        (dict(cascades=2), "--cascades: expected --method tsdf as well, got opacity, which searches one box; drop one"),
        (dict(cascades=2, method=Method.POISSON), "--cascades: expected --method tsdf as well, got poisson"),
        (dict(cascades=0), "--cascades: expected at least 1, got 0"),
        (dict(resolution=7), "--resolution: expected at least 8, got 7"),
    ],
)
def test_refused(options, message):
    with pytest.raises(UserError, match=f"^extract: {message}"):
        extract_mesh(run_of(signed=True), **options)


def test_an_unsigned_distance_trims_nothing_either():
    with pytest.raises(UserError, match=r"^extract: --trim: expected --method poisson as well, got dual"):
        extract_mesh(run_of(signed=False, distance=len), trim=2.0)


@pytest.mark.parametrize(("asked", "given"), [({}, 1.5), (dict(trim=0.0), 0.0), (dict(trim=3.0), 3.0)])
def test_poisson_is_told_where_to_end(monkeypatch, asked, given):
    told = []
    monkeypatch.setattr(meshing, "through_views", lambda *arguments: told.append(arguments[-1]) or TRIANGLE)
    mesh = extract_mesh(run_of(), method=Method.POISSON, **asked)
    assert told == [given] and torch.equal(mesh.vertices, TRIANGLE.vertices)


def test_words_that_are_none_are_refused():
    with pytest.raises(TypeError, match="trimm"):
        extract_mesh(run_of(), trimm=1.0)
    assert MeshOptions() == MeshOptions(components=None, resolution=256)
