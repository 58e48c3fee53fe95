"""Whole images, one per step: each once per round, the same for the same seed, and on from where they were."""

import itertools

import pytest
import torch
from polyfield.apps.image_batches import ImageBatches
from polyfield.datasets.scene import Frame
from polyfield.geometry import Camera


def frames(count=7):
    camera = Camera.perspective(6, 4, 0.8, torch.eye(4))
    mask = torch.arange(24).view(4, 6) > 3
    return [
        Frame(f"{i}", camera, torch.full((4, 6, 3), i, dtype=torch.uint8), mask=mask if i else None)
        for i in range(count)
    ]


def numbers(batches, count):
    return [int(batches.draw()[2]) for _ in range(count)]


def test_each_image_once_per_round():
    batches = ImageBatches(frames(), seed=3)
    rounds = [numbers(batches, 7) for _ in range(5)]
    in_order = list(itertools.chain(*rounds))
    assert all(sorted(r) == list(range(7)) for r in rounds)
    assert len({tuple(r) for r in rounds}) > 1
    assert numbers(ImageBatches(frames(), seed=3), 35) == in_order
    assert numbers(ImageBatches(frames(), seed=4), 35) != in_order


def test_what_is_drawn():
    batches = ImageBatches(frames())
    for _ in range(7):
        camera, target, number = batches.draw()
        assert (camera.width, camera.height) == (6, 4)
        assert (target.colors * 255).round().eq(int(number)).all()
        assert target.alphas is None
        assert (target.masks is None) == (int(number) == 0)


def test_resumes_within_a_round():
    batches = ImageBatches(frames(), seed=1)
    numbers(batches, 10)
    state, random = {k: v.clone() for k, v in batches.state_dict().items()}, batches.generator.get_state()
    wanted = numbers(batches, 20)
    other = ImageBatches(frames(), seed=9)
    other.load_state_dict(state)
    other.generator.set_state(random)
    assert numbers(other, 20) == wanted


def test_no_images():
    with pytest.raises(ValueError, match="fit: scene: expected at least one training view, got none"):
        ImageBatches([])
