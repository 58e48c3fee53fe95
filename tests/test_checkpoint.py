"""Checkpoints survive what a disk and an impatient user do to them."""

import errno
from pathlib import Path

import pytest
import torch
from polyfield.apps.checkpoint import checkpoints, load_newest, load_tensors, save_checkpoint, save_tensors, write_whole
from polyfield.apps.errors import UserError


def test_round_trip_is_exact(tmp_path):
    tensors = {"a": torch.randn(3, 5), "b": torch.arange(7), "c": torch.randn(2).bfloat16(), "d": torch.tensor(3)}
    save_tensors(tmp_path / "x.safetensors", tensors, {"step": 7, "elapsed": 1.5})
    found, metadata = load_tensors(tmp_path / "x.safetensors")
    assert metadata == {"step": 7, "elapsed": 1.5}
    assert all(torch.equal(found[k], v) for k, v in tensors.items())


def test_only_the_newest_are_kept(tmp_path):
    for step in (10, 200, 30):
        save_checkpoint(tmp_path, step, {"a": torch.tensor(step)}, {})
    assert [p.name for p in checkpoints(tmp_path)] == ["step_00000200.safetensors", "step_00000030.safetensors"]


@pytest.mark.parametrize("keep", [0, 5, 60, 0.5, 0.99])
def test_a_checkpoint_cut_short_falls_back_to_the_one_before(tmp_path, keep):
    save_checkpoint(tmp_path, 1, {"a": torch.full((1000,), 1.0)}, {})
    newest = save_checkpoint(tmp_path, 2, {"a": torch.full((1000,), 2.0)}, {})
    content = newest.read_bytes()
    newest.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    warnings = []
    tensors, metadata = load_newest(tmp_path, warnings.append)
    assert metadata["step"] == 1
    assert tensors["a"][0] == 1
    assert len(warnings) == 1
    assert newest.name in warnings[0]


def test_no_checkpoint_is_none(tmp_path):
    assert load_newest(tmp_path) is None
    assert load_newest(tmp_path / "absent") is None


def test_a_full_disk_leaves_what_was_there(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("old")

    def full(temporary: Path):
        temporary.write_text("half of the ne")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match=r"x\.json: could not be written .*No space left.*free some space"):
        write_whole(path, full)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_no_checkpoint(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(UserError, match="expected a safetensors file written by polyfield"):
        load_tensors(tmp_path / "x.safetensors")
