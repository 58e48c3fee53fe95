"""Photographs before a plain background: its colour, and alphas that cut the scene out of it.

A field that had to draw the background would wall itself in, in its colour: a black ball explains a rose before black.
So pixels of the background's colour that are connected to the rim get alpha 0; whatever is as dark, or as white, within
the scene stays, and with it gaps that the scene encloses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from .scene import Frame

NEAR = 3  # of 255: what differs less is of one colour
SHARE = 0.98  # of the images' rims


def plain_background(frames: Sequence[Frame]) -> Tensor | None:
    """(3,) the colour of the images' rims if they all have one, else None."""
    rims = [_rim(f.colors).short() for f in frames[:: max(1, len(frames) // 32)]]
    color = torch.cat(rims).median(0).values
    if all(((rim - color).abs() <= NEAR).all(-1).double().mean() >= SHARE for rim in rims):
        return color.float() / 255
    return None


def cut_out(frame: Frame, background: Tensor) -> Frame:
    """The photograph with alphas: 0 where the background's colour (3,) reaches in from the rim, else 255."""
    from scipy import ndimage

    color = (background * 255).round().short()
    plain = ((frame.colors.short() - color).abs() <= NEAR).all(-1).numpy()
    parts, count = ndimage.label(plain)
    outside = np.zeros(count + 1, dtype=bool)
    outside[_rim(torch.from_numpy(parts)).numpy()] = True
    outside[0] = False  # what is not plain
    return replace(frame, alphas=torch.from_numpy(np.where(outside[parts], 0, 255).astype(np.uint8)))


def _rim(image: Tensor) -> Tensor:
    return torch.cat([image[0], image[-1], image[:, 0], image[:, -1]])
