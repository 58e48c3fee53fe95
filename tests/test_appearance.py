"""Appearance codes: nothing at first, closed forms, what fits gain, and the halves of held-out photographs."""

from dataclasses import replace

import pytest
import torch
from polyfield.apps.__main__ import main
from polyfield.apps.commands.evaluate import evaluate
from polyfield.apps.config_io import to_json
from polyfield.apps.exposures import ExposureKind
from polyfield.apps.fit import Budget, fit
from polyfield.apps.half_fit import fitted_half, load_appearance, right_half
from polyfield.apps.recipes import ngp, splat
from polyfield.apps.run import open_run
from polyfield.datasets.scene import open_scene
from polyfield.renderers.appearance import AppearanceCodes
from polyfield.renderers.exposure import Exposure
from polyfield.renderers.metrics import psnr

from .test_fit import SMALL as SMALL_GRID
from .test_splat_fit import SMALL as SMALL_SPLAT


def trained(images=5, seed=0):
    """Codes whose network does something."""
    codes, generator = AppearanceCodes(images), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        codes.out.copy_(0.3 * torch.randn(codes.out.shape, generator=generator))
        codes.codes.copy_(torch.randn(codes.codes.shape, generator=generator))
    return codes


def test_nothing_changes_at_first():
    codes, colors = AppearanceCodes(3), torch.rand(6, 5, 3)
    torch.testing.assert_close(codes(colors, torch.tensor(1)), colors)
    torch.testing.assert_close(codes(colors.view(-1, 3), torch.arange(30) % 3), colors.view(-1, 3))


def test_an_affine_map_of_its_own_for_each_photograph():
    codes = trained()
    colors = torch.rand(4, 3)
    changed = codes(colors, torch.tensor([0, 0, 3, 4]))
    centered = codes.codes - codes.codes.mean(0)
    for row, image in enumerate((0, 0, 3, 4)):
        affine = (torch.tanh(centered[image] @ codes.into) @ codes.out).view(3, 4)
        expected = colors[row] + affine[:, :3] @ colors[row] + affine[:, 3]
        torch.testing.assert_close(changed[row], expected)
    whole = codes(colors.view(2, 2, 3), torch.tensor(3)).view(-1, 3)
    torch.testing.assert_close(whole, codes(colors, torch.full((4,), 3)))


def test_the_mean_code_changes_nothing():
    codes = trained()
    colors = torch.rand(7, 3)
    torch.testing.assert_close(codes.apply_code(colors, torch.zeros(8)), colors)
    with torch.no_grad():
        before = codes(colors, torch.arange(7) % 5)
        codes.codes.add_(3.0)
    torch.testing.assert_close(codes(colors, torch.arange(7) % 5), before, atol=1e-4, rtol=0)


def test_gradients_reach_codes_and_network():
    codes = trained().double()
    colors = torch.rand(5, 3, dtype=torch.float64, requires_grad=True)
    inputs = (colors, codes.codes, codes.into, codes.out)

    def call(colors, *parameters):
        values = dict(zip(("codes", "into", "out"), parameters, strict=True))
        return torch.func.functional_call(codes, values, (colors, torch.tensor([0, 1, 1, 3, 4])))

    assert torch.autograd.gradcheck(call, inputs)


@pytest.mark.parametrize("appearance", [Exposure(2), trained()], ids=["gain", "codes"])
def test_the_right_half_is_predicted_from_the_left(appearance):
    generator = torch.Generator().manual_seed(3)
    colors = torch.rand(8, 10, 3, generator=generator)
    code = torch.tensor([0.3, -0.2, 0.1]) if isinstance(appearance, Exposure) else 0.5 * torch.randn(8)
    with torch.no_grad():
        target = appearance.apply_code(colors, code)
    fitted = fitted_half(appearance, colors, target, None)
    before, after = (float((right_half(x) - right_half(target)).square().mean()) for x in (colors, fitted))
    assert after < 0.02 * before
    mask = torch.ones(8, 10, dtype=torch.bool)
    mask[:, 3:] = False
    spoiled = target.clone()
    spoiled[:, 3:5] = 0
    masked = fitted_half(appearance, colors, spoiled, mask)
    assert float((right_half(masked) - right_half(target)).square().mean()) < 0.05 * before
    assert torch.equal(fitted_half(appearance, colors, target, torch.zeros_like(mask)), colors)


def tinted(scene):
    """The scene in two tones, as photographs of two days."""
    days = torch.tensor([[1.25, 1.0, 0.7], [0.75, 1.0, 1.3]])
    frames = []
    for number, frame in enumerate(scene.frames):
        colors = frame.over((0.0, 0.0, 0.0)) * days[number % 2]
        frames.append(replace(frame, colors=(colors.clamp(0, 1) * 255).round().byte(), alphas=None))
    return scene.with_frames(tuple(frames))


@pytest.mark.parametrize(
    ("config", "gain"),
    [(replace(SMALL_GRID, background=ngp.Background.BLACK), 1.0), (SMALL_SPLAT, 1.0)],
    ids=["ngp", "splat"],
)
def test_photographs_of_two_days(config, gain):
    """Held-out photographs' right halves, in decibels, with and without codes."""
    scene = tinted(open_scene("demo", downscale=4))
    scene = scene.with_frames((*scene.train[::3], *scene.test[:4]))
    budget, found = Budget(steps=200), []
    for kind in (ExposureKind.NONE, ExposureKind.CODES):
        job = replace(config, exposure=kind).build(scene, budget=budget)
        fit(job, budget, replace(config, exposure=kind).after_step())
        total = 0.0
        for frame in scene.test:
            colors, target = job.renderer.render(job.field, frame.camera).pixels.colors, frame.over((0.0, 0.0, 0.0))
            if kind is ExposureKind.CODES:
                colors = fitted_half(job.exposure, colors, target, None)
            total += psnr(right_half(colors).detach(), right_half(target))
        found.append(total / len(scene.test))
    assert found[1] > found[0] + gain, found


@pytest.mark.parametrize("kind", ["gain", "codes"])
def test_evaluate_says_what_halves_were_fitted(tmp_path, kind, capsys):
    folder = tmp_path / "run"
    command = ["fit", "ngp", "demo", "--run", str(folder), "--steps", "20", "--downscale", "4", "--exposure", kind]
    assert main(command) == 0
    assert main(["evaluate", str(folder), "--half-fit"]) == 0
    assert "right halves, after fitting the left; without it PSNR" in capsys.readouterr().out
    metrics = evaluate(open_run(folder), half_fit=True)
    assert metrics["half_fit"]
    assert metrics["psnr"] >= metrics["psnr_not_fitted"] - 0.5
    assert (folder / "contact_sheet.png").is_file()
    assert "half_fit" not in evaluate(open_run(folder))


def test_runs_without_codes_are_refused(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(["fit", "ngp", "demo", "--run", str(folder), "--steps", "2", "--downscale", "4"]) == 0
    assert main(["evaluate", str(folder), "--half-fit"]) == 2
    said = capsys.readouterr().err
    assert "--half-fit: expected a run fitted with --exposure gain or codes, got none; drop it" in said


def test_codes_are_kept_with_the_run(tmp_path):
    folder = tmp_path / "run"
    command = ["fit", "ngp", "demo", "--run", str(folder), "--steps", "5", "--downscale", "4", "--exposure", "codes"]
    assert main(command) == 0
    codes = load_appearance(open_run(folder))
    assert len(codes.codes) == 60
    assert float(codes.out.abs().max()) > 0, "it has learned"
    for recipe in (ngp, splat):
        assert to_json(replace(recipe.Config(), exposure=ExposureKind.CODES))["exposure"] == "codes"
