import pytest
import torch
from polyfield.geometry import Aabb, Mesh
from polyfield.geometry.atlas import fill_gutters, make_atlas, texel_faces
from polyfield.geometry.isosurface import isosurface
from polyfield.geometry.mesh_ops import face_areas, sample_surface
from polyfield.geometry.raster import barycentric, covered
from polyfield.geometry.textured_mesh import TexturedMesh
from scipy.spatial import cKDTree

SIZE = 256


def shade(points):
    """A smooth colour of places."""
    return 0.5 + 0.5 * torch.stack([(5 * points[:, 0]).sin(), points[:, 1], (3 * points[:, 2]).cos()], 1)


def sphere():
    return isosurface(lambda p: p.norm(dim=1) - 0.7, Aabb.cube(), 16)


def cube():
    """Twelve triangles that share eight corners."""
    corners = torch.cartesian_prod(*[torch.tensor([-0.6, 0.6])] * 3)
    sides = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
    return Mesh(corners, torch.tensor([t for a, b, c, d in sides for t in ([a, b, c], [a, c, d])]))


@pytest.fixture(scope="module", params=[sphere, cube])
def mesh(request):
    return request.param()


@pytest.fixture(scope="module")
def atlas(mesh):
    return make_atlas(mesh, SIZE)


def baked(atlas):
    filled = (atlas.texel_faces >= 0).view(SIZE, SIZE)
    texture = torch.zeros(SIZE * SIZE, 3, dtype=torch.uint8)
    texels = filled.view(-1).nonzero()[:, 0]
    texture[texels] = (shade(atlas.points(texels)[0]).clamp(0, 1) * 255).round().to(torch.uint8)
    texture = fill_gutters(texture.view(SIZE, SIZE, 3), filled)
    return TexturedMesh(atlas.mesh.vertices, atlas.mesh.faces, atlas.uvs, texture, atlas.mesh.normals)


def test_the_triangles_stay(mesh, atlas):
    assert torch.equal(atlas.mesh.vertices[atlas.mesh.faces], mesh.vertices[mesh.faces])
    assert (atlas.uvs >= 0).all() and (atlas.uvs <= 1).all()
    assert len(atlas.mesh.vertices) > len(mesh.vertices), "a closed surface has seams"


def test_charts_do_not_overlap_and_have_the_surfaces_proportions(mesh, atlas):
    corners = atlas.uvs.double()[atlas.mesh.faces] * SIZE
    count = torch.zeros(SIZE * SIZE, dtype=torch.long)
    middle = corners.mean(1, keepdim=True)
    for _, texel, _ in covered(middle + 0.999 * (corners - middle), SIZE, SIZE):  # without shared edges
        count.index_add_(0, texel, torch.ones_like(texel))
    assert count.max() == 1
    edges = corners[:, 1:] - corners[:, :1]
    areas = (edges[:, 0, 0] * edges[:, 1, 1] - edges[:, 0, 1] * edges[:, 1, 0]).abs() / 2
    large = face_areas(mesh) > 0.2 * face_areas(mesh).mean()
    density = areas[large] / face_areas(mesh).double()[large]
    assert density.max() / density.min() < 3, "texels are spread evenly"
    assert areas.sum() > 0.35 * SIZE * SIZE, "most of the square is used"


def test_texels_show_points_of_the_surface(mesh, atlas):
    texels = (atlas.texel_faces >= 0).nonzero()[:, 0]
    points, normals = atlas.points(texels)
    torch.testing.assert_close(normals.norm(dim=1), torch.ones(len(normals)))
    dense = cKDTree(sample_surface(mesh, 100_000, torch.Generator().manual_seed(0))[0].numpy())
    assert dense.query(points.numpy())[0].max() < 0.03
    outwards = (normals * torch.nn.functional.normalize(points, dim=1)).sum(1)
    assert outwards.min() > 0.5
    # Inside its triangle, a texel shows the point whose coordinates are those of its centre.
    corners, weights = atlas.weights(texels)
    at = (atlas.uvs[corners] * weights[..., None]).sum(1) * SIZE
    off = (at - (torch.stack([texels % SIZE, texels // SIZE], 1) + 0.5)).norm(dim=1)
    assert off.max() < 2 and (off < 1e-3).float().mean() > 0.8


def test_a_function_that_is_baked_is_found_again(mesh, atlas):
    """At any point of the surface, the seams' own included: the texture's bilinear value is the function's."""
    textured = baked(atlas)
    g = torch.Generator().manual_seed(1)
    faces = torch.randint(len(mesh.faces), (20_000,), generator=g)
    weights = torch.rand(20_000, 3, generator=g)
    weights[:5000, 0] = 0  # on edges
    weights[5000:6000] = torch.tensor([1.0, 0.0, 0.0])  # at corners
    weights = weights / weights.sum(1, keepdim=True)
    points = (mesh.vertices[mesh.faces[faces]] * weights[..., None]).sum(1)
    error = (textured.colors_at(faces, weights) - shade(points).clamp(0, 1)).abs()
    assert error.mean() < 0.004, "rounding to 8 bits is 0.002"
    assert error.max() < 0.08


def test_gutters_continue_the_charts(atlas):
    texture = torch.full((SIZE, SIZE, 1), -9.0)
    filled = (atlas.texel_faces >= 0).view(SIZE, SIZE)
    texture[filled] = 3.0
    assert torch.equal(fill_gutters(texture, filled), torch.full((SIZE, SIZE, 1), 3.0))
    one = torch.zeros(7, 7, dtype=torch.bool)
    one[3, 3] = one[0, 0] = True
    picture = torch.zeros(7, 7, 1, dtype=torch.uint8)
    picture[3, 3], picture[0, 0] = 100, 200
    grown = fill_gutters(picture, one, steps=1)[..., 0]
    assert (grown[2:5, 2:5] == 100).all() and (grown[:2, :2] == 200).all()
    assert grown[6, 6] == 150, "the mean, where no chart is near"
    empty = torch.zeros(4, 4, 3)
    assert torch.equal(fill_gutters(empty.clone(), torch.zeros(4, 4, dtype=torch.bool)), empty)


def test_a_triangle_smaller_than_a_texel_still_has_one():
    uvs = torch.tensor([[0.51, 0.51], [0.52, 0.51], [0.51, 0.52], [0.1, 0.1]])
    faces = torch.tensor([[0, 1, 2]])
    found = texel_faces(uvs, faces, 16)
    assert (found == 0).sum() >= 1 and set(found.tolist()) == {-1, 0}
    assert found.view(16, 16)[8, 8] == 0
    weights = barycentric(uvs[faces].double(), torch.tensor([[0.51, 0.51]]).double())
    torch.testing.assert_close(weights, torch.tensor([[1.0, 0, 0]]).double(), atol=1e-6, rtol=0)


def test_tiny_and_distant_meshes_are_laid_out(mesh):
    moved = Mesh(mesh.vertices.double() * 1e-4 + 3.0, mesh.faces)
    atlas = make_atlas(moved, 64)
    assert (atlas.texel_faces >= 0).float().mean() > 0.3


def test_errors(mesh):
    with pytest.raises(ValueError, match="make_atlas: size: expected at least 16 texels, got 8"):
        make_atlas(mesh, 8)
    with pytest.raises(ValueError, match="make_atlas: mesh: expected at least one triangle, got none"):
        make_atlas(Mesh(mesh.vertices, mesh.faces[:0]), 64)
    with pytest.raises(ValueError, match="make_atlas: mesh: expected finite triangles with an area, got none"):
        make_atlas(Mesh(mesh.vertices * 0, mesh.faces), 64)


def test_triangles_without_area_take_no_texel():
    corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0.5, 0.5, 0]])
    mesh = Mesh(corners, torch.tensor([[0, 1, 2], [0, 2, 3], [0, 2, 4], [1, 1, 3]]))
    atlas = make_atlas(mesh, 64)
    assert set(atlas.texel_faces.tolist()) - {-1} == {0, 1}
    assert torch.equal(atlas.mesh.vertices[atlas.mesh.faces], mesh.vertices[mesh.faces])
