"""Held-out photographs of a scene that was fitted with an appearance per photograph: the left half fits it, the right
half is measured (NeRF-W; Martin-Brualla et al. 2021, section 5)."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ..renderers.appearance import AppearanceCodes
from ..renderers.exposure import Exposure
from .checkpoint import load_newest, load_tensors
from .errors import UserError
from .exposures import ExposureKind
from .run import Run


class Appearance(Protocol):
    """What can be fitted to one photograph."""

    def fitted(self, colors: Tensor, target: Tensor) -> Tensor: ...

    def apply_code(self, colors: Tensor, code: Tensor, /) -> Tensor: ...


def load_appearance(run: Run) -> Appearance:
    """What the run learned of its photographs' looks. Raises UserError if that is nothing that half of one can fit."""
    kind = getattr(run.asked.config, "exposure", ExposureKind.NONE)
    if kind not in (ExposureKind.GAIN, ExposureKind.CODES):
        raise UserError(
            f"evaluate: --half-fit: expected a run fitted with --exposure gain or codes, got {kind.value}; drop it"
        )
    path = run.folder / "scene.safetensors"
    loaded = load_tensors(path) if path.is_file() else load_newest(run.folder / "checkpoints")
    assert loaded is not None, "the run was opened from one of them"
    found = {k.removeprefix("exposure."): v for k, v in loaded[0].items() if k.startswith("exposure.")}
    if kind is ExposureKind.GAIN:
        return Exposure(len(found["log_gains"]))
    codes = AppearanceCodes(len(found["codes"]))
    codes.load_state_dict(found)
    return codes.to(run.device).requires_grad_(False)


def fitted_half(appearance: Appearance, colors: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """Colours (H, W, 3) under the appearance that suits the left half of ``target`` best; masked pixels have no say."""
    middle = colors.shape[1] // 2
    counts = slice(None) if mask is None else mask[:, :middle].reshape(-1)
    left, wanted = (x[:, :middle].reshape(-1, 3)[counts] for x in (colors, target))
    return appearance.apply_code(colors, appearance.fitted(left, wanted)) if len(left) else colors


def right_half(image: Tensor) -> Tensor:
    """Of an image (H, W, ...)."""
    return image[:, image.shape[1] // 2 :]
