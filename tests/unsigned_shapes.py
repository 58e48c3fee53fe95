"""Thin shapes with known boundaries, for what is fitted to or extracted from unsigned distances."""

import math

import torch
import trimesh
from polyfield.geometry import Mesh
from polyfield.geometry.mesh_cleaning import clean
from polyfield.geometry.mesh_distance import MeshDistance

TURN = torch.tensor([[0.8, 0.36, -0.48], [0.0, 0.8, 0.6], [0.6, -0.48, 0.64]])  # no axis is a lattice's own


def sheet(rows, columns, place):
    """The mesh of place(u, v) over the unit square, turned."""
    u, v = torch.meshgrid(torch.linspace(0, 1, rows), torch.linspace(0, 1, columns), indexing="ij")
    i, j = torch.meshgrid(torch.arange(rows - 1), torch.arange(columns - 1), indexing="ij")
    a = (i * columns + j).reshape(-1)
    b, c, d = a + columns, a + columns + 1, a + 1
    faces = torch.cat([torch.stack([a, b, c], 1), torch.stack([a, c, d], 1)])
    return clean(Mesh(place(u, v).reshape(-1, 3) @ TURN.T, faces)).mesh


def disc():
    return sheet(
        20, 91, lambda u, v: 0.7 * torch.stack([u * (2 * math.pi * v).cos(), u * (2 * math.pi * v).sin(), 0 * u], -1)
    )


def bowl():
    def place(u, v):
        down, around = u * math.pi / 2, 2 * math.pi * v
        return 0.7 * torch.stack([down.sin() * around.cos(), down.sin() * around.sin(), -down.cos()], -1)

    return sheet(30, 91, place)


def ball():
    made = trimesh.creation.icosphere(4, 0.7)
    return Mesh(torch.tensor(made.vertices).float(), torch.tensor(made.faces))


def cloth():
    """Two flat sheets, 0.36 apart, that a half cylinder joins."""
    radius, length = 0.18, 0.7

    def place(u, v):
        bend = math.pi * radius
        d = u * (2 * length + bend) - length
        t = d / radius
        x = torch.where(d < 0, -d, torch.where(d < bend, -radius * t.sin(), d - bend))
        z = torch.where(d < 0, -radius, torch.where(d < bend, -radius * t.cos(), radius))
        return torch.stack([x - 0.3, v - 0.5, z], -1)

    return sheet(120, 20, place)


def unsigned(mesh):
    """Exact distances to a mesh, and their gradients."""
    exact = MeshDistance(mesh, signed=False)

    def ask(points):
        known = exact(points)
        return known.distances, known.normals

    return ask
