"""A full disk at the end of training costs no training."""

import errno
import os
from types import SimpleNamespace

import pytest

from stages.contract import UserError
from stages.trainer.loop import finished
from stages.trainer.saving import sealing

HISTORY = [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 0.1 + 0.2}]
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def run(tmp_path):
    for name in ("out", "scratch"):
        (tmp_path / name).mkdir()
    for step in (10, 20):
        folder = tmp_path / "scratch/partial" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"state")
        sealing.publish(folder, tmp_path / "scratch")
    return SimpleNamespace(stage="pretrain", out=tmp_path / "out", scratch=tmp_path / "scratch")


def saver(run, room):
    """What writes a model, where ``room`` allows it."""

    def save(folder):
        (folder / "config.json").write_text("{}")
        if not room(folder):
            (folder / "model.safetensors").write_bytes(b"trai")
            raise FULL
        (folder / "model.safetensors").write_bytes(b"trained")

    return save


def test_model_that_found_no_room_is_written_by_the_next_run(run):
    assert finished.restore_finished(run) is None
    with pytest.raises(UserError) as error:
        finished.write(saver(run, lambda folder: folder != run.out), 2_000_000, run, HISTORY)
    line = str(error.value)
    assert line.startswith(f"no room for the trained model in {run.out} (needs 2.0 MB, has ") and "\n" not in line
    assert line.endswith(f"It is kept in {run.scratch}/trained; run again, which only writes it.")
    assert not list(run.out.iterdir()), "half a model would pass for a whole one"
    assert finished.restore_finished(run) == HISTORY
    assert {p.name for p in run.out.iterdir()} == {"config.json", "model.safetensors"}
    assert (run.out / "model.safetensors").read_bytes() == b"trained"


def test_older_checkpoint_makes_room_for_the_model(run):
    def room(folder):
        return folder != run.out and len(sealing.numbered(run.scratch)) == 1

    with pytest.raises(UserError, match="run again, which only writes it"):
        finished.write(saver(run, room), 1, run, HISTORY)
    assert finished.restore_finished(run) == HISTORY


def test_without_any_room_the_newest_checkpoint_is_left(run):
    with pytest.raises(UserError, match=r"The next run trains on from step 20\.$"):
        finished.write(saver(run, lambda folder: False), 1, run, HISTORY)
    assert [p.name for p in sealing.numbered(run.scratch)] == ["checkpoint-20"]
    assert finished.restore_finished(run) is None
    assert not list(run.scratch.glob("trained*"))


def test_damaged_model_is_not_restored(run):
    with pytest.raises(UserError):
        finished.write(saver(run, lambda folder: folder != run.out), 1, run, HISTORY)
    (run.scratch / "trained/model.safetensors").write_bytes(b"Trained")
    assert finished.restore_finished(run) is None


def test_other_errors_are_raised(run):
    def save(folder):
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        finished.write(save, 1, run, HISTORY)
