"""The running mean of a field's parameters."""

import pytest
import torch
from polyfield.fields.average import Average
from torch import nn


def test_the_mean_of_a_walk_lies_nearer_to_its_middle_than_the_walk():
    generator = torch.Generator().manual_seed(0)
    field = nn.Linear(50, 50)
    average = Average(field)
    for _ in range(400):
        with torch.no_grad():
            for parameter in field.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        average.update()
    assert field.weight.std() > 0.9
    assert average.means["weight"].std() < 0.25  # sqrt((1 - d) / (1 + d)) = 0.16 for independent places


def test_a_young_mean_forgets_the_start():
    field = nn.Linear(1, 1)
    with torch.no_grad():
        field.weight.fill_(100.0)
    average = Average(field, decay=0.95)
    with torch.no_grad():
        field.weight.fill_(1.0)
    for _ in range(10):
        average.update()
    assert abs(average.means["weight"].item() - 1) < 1e-2


def test_it_goes_on_from_its_state():
    field = nn.Linear(2, 2)
    first, second = Average(field), Average(field)
    first.update()
    with torch.no_grad():
        field.weight.add_(1)
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    first.update(), second.update()
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])


def test_decay_is_checked():
    with pytest.raises(ValueError, match="Average: decay: expected a number from 0 to 1"):
        Average(nn.Linear(1, 1), decay=1.5)
