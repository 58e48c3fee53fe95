"""The command line: what it lists, what it refuses, and that a user's mistake never shows a traceback."""

import subprocess
import sys

import pytest
from polyfield.apps.__main__ import main


def polyfield(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "polyfield.apps", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def test_help_lists_every_verb_without_importing_torch():
    script = (
        "import sys; from polyfield.apps.__main__ import main; main(['--help']);"
        "heavy = {'torch', 'numpy', 'tyro', 'viser', 'trimesh'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for verb in ("convert", "doctor", "process", "evaluate", "extract", "fit", "render", "view"):
        line = next(line for line in done.stdout.splitlines() if line.split()[:1] == [verb])
        assert len(line.split()) > 3, "a verb says what it does"


def test_public_names_import_lazily():
    names = "polyfield.Camera; polyfield.fit_scene; polyfield.extract_mesh"
    script = f"import sys, polyfield; assert 'torch' not in sys.modules; {names}"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_unknown_public_name():
    import polyfield

    with pytest.raises(AttributeError, match="no attribute 'fit_szene'"):
        _ = polyfield.fit_szene
    assert set(polyfield.__all__) <= {*dir(polyfield)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["fry"],
            "verb: expected one of cameras, convert, doctor, evaluate, extract, fit, inspect, process, render, view, "
            "got 'fry'",
        ),
        (
            ["fit", "npg", "demo"],
            "expected one of neus, ngp, shape, splat, splat_2d, splat_classic, splat_mip, udf, volsdf, got 'npg'",
        ),
        (["fit"], "fit: recipe: expected one of the above, got nothing"),
        (["fit", "ngp", "/nowhere/at/all"], "/nowhere/at/all"),
        (
            ["fit", "ngp", "demo", "--steps", "3", "--seconds", "2"],
            "--steps and --seconds: expected one of them, got both",
        ),
        (["fit", "ngp", "demo", "--steps", "-3"], "--steps: expected a positive number, got -3"),
        (["fit", "ngp", "demo", "--downscale", "0"], "--downscale: expected a positive number, got 0"),
        (["fit", "ngp", "demo", "--resume", "--overwrite"], "--resume and --overwrite: expected one of them, got both"),
        (["evaluate", "/nowhere"], "/nowhere: expected a run folder with config.json, found none"),
        (["extract", "/nowhere"], "/nowhere: expected a run folder"),
        (["render", "/nowhere"], "/nowhere: expected a run folder"),
        (["render", "/nowhere", "--views", "path"], "--views path: expected --path FILE as well"),
        (["view", "/nowhere"], "/nowhere: expected a run folder"),
    ],
)
def test_mistakes_print_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_verbs_explain_themselves():
    for verb in ("fit ngp", "evaluate", "extract", "render", "view", "doctor", "convert", "process"):
        done = polyfield(*verb.split(), "--help")
        assert done.returncode == 0, done.stderr
        assert "usage" in done.stdout.lower()
