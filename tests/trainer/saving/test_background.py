"""Training goes on while a checkpoint is written; whatever happens to it, none is published in part."""

import signal
import threading
import time
import types

import pytest
import torch

from stages.contract import UserError
from stages.trainer.saving import background as module
from stages.trainer.saving.background import Background, background_writer
from stages.trainer.saving.checkpoints import Checkpoints, latest
from stages.trainer.saving.sealing import numbered


class Training:
    """A training whose weights are its step, as a Trainer with a background saves it."""

    def __init__(self, scratch):
        self.scratch, self.model = scratch, torch.nn.Linear(10, 10)
        self.args = types.SimpleNamespace(
            output_dir=str(scratch / "partial"), device=torch.device("cpu"), should_save=True
        )
        trainer = types.SimpleNamespace(
            model=self.model, optimizer=torch.optim.AdamW(self.model.parameters()), args=self.args,
            is_fsdp_enabled=False,
        )  # fmt: skip
        self.background = Background(trainer)
        self.callback = Checkpoints(scratch, background=self.background)
        self.callback.fixed = self.callback.interval = 1e-9

    def step(self, step):
        torch.nn.init.constant_(self.model.weight, step)
        state = types.SimpleNamespace(global_step=step, max_steps=100)
        control = types.SimpleNamespace(should_save=False, should_training_stop=False)
        self.callback.on_step_end(self.args, state, control, model=self.model)
        if control.should_save:
            folder = self.scratch / "partial" / f"checkpoint-{step}"
            folder.mkdir(parents=True)
            if self.background.active:
                self.background.copy(folder)
            else:
                (folder / "model.safetensors").write_bytes(b"by the Trainer")
            self.callback.on_save(self.args, state, control)
        return control

    def wait(self):
        if self.background.work:
            self.background.work.exception()

    def end(self, step):
        self.callback.on_train_end(self.args, types.SimpleNamespace(global_step=step, max_steps=100), None)


@pytest.fixture
def training(tmp_path):
    training = Training(tmp_path)
    training.background.prepare()
    training.wait()
    yield training
    training.callback.release()


@pytest.fixture
def gate(monkeypatch):
    """Writing waits until it is set."""
    gate, write = threading.Event(), module._write_whole
    monkeypatch.setattr(module, "_write_whole", lambda *args: (gate.wait(60), write(*args)))
    yield gate
    gate.set()


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")["weight"].unique().tolist()


def test_checkpoint_holds_the_step_it_is_named_after(training, gate, tmp_path):
    training.step(10)
    training.model.weight.data.zero_()
    gate.set()
    training.wait()
    assert latest(tmp_path).name == "checkpoint-10" and weights(latest(tmp_path)) == [10]
    assert torch.load(latest(tmp_path) / "optimizer.pt", weights_only=True)["param_groups"]


def test_next_one_is_put_off_and_that_is_printed_once(training, gate, tmp_path, capsys):
    training.step(10)
    assert not any(training.step(step).should_save for step in (20, 30))
    gate.set()
    training.wait()
    assert training.step(40).should_save
    training.wait()
    assert [p.name for p in numbered(tmp_path)] == ["checkpoint-40", "checkpoint-10"]
    assert capsys.readouterr().out == "checkpoint-10 is still being written; the next one waits for it\n"


@pytest.mark.parametrize(
    ("number", "says"),
    [(28, "no room for checkpoints in"), (5, "checkpoints cannot be written in {} (Input/output error)")],
)
def test_errors_of_the_background_do_not_stop_training(training, tmp_path, capsys, monkeypatch, number, says):
    def fail(*args):
        raise OSError(number, "x")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write_whole", fail)
        for step in (10, 20):
            training.step(step)
            training.wait()
    training.step(30)
    training.wait()
    training.step(40)
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith(says.format(tmp_path)) and "training goes on without" in first
    assert rest == [f"checkpoints are written again in {tmp_path}"]
    assert not (tmp_path / "partial" / "checkpoint-10").exists()


def test_bug_in_the_background_is_raised(training, monkeypatch):
    monkeypatch.setattr(module, "_write_whole", lambda *args: 1 / 0)
    training.step(10)
    training.wait()
    with pytest.raises(ZeroDivisionError):
        training.step(20)


def test_signal_waits_for_the_one_before_the_last(training, gate, tmp_path):
    training.step(10)
    training.callback._stop(signal.SIGTERM, None)
    threading.Timer(0.01, gate.set).start()
    assert training.step(20).should_training_stop
    assert [p.name for p in numbered(tmp_path)] == ["checkpoint-20", "checkpoint-10"]
    assert (tmp_path / "checkpoint-20" / "model.safetensors").read_bytes() == b"by the Trainer"


def test_end_of_training_publishes_nothing_more(training, gate, tmp_path):
    training.step(10)

    def open_gate():
        while not training.background.cancelled:
            time.sleep(0.001)
        gate.set()

    threading.Thread(target=open_gate).start()
    training.end(100)
    assert numbered(tmp_path) == [] and not list((tmp_path / "partial").iterdir())


def test_page_locked_memory_is_given_back_at_the_end(training, monkeypatch):
    held = []
    monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: held.append(len(training.background.copies.places)))
    assert training.background.copies.places
    training.background.copies.pinned = True
    training.end(100)
    assert held[0] == 0


def test_without_memory_for_a_copy_training_waits(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "free_host_memory", lambda: 1)
    training = Training(tmp_path)
    training.step(10)
    assert latest(tmp_path).name == "checkpoint-10"
    assert training.callback.background is None
    assert capsys.readouterr().out.startswith("training waits while a checkpoint is written: a copy takes 0.0 GiB of")


def test_failed_allocation_lets_training_wait(tmp_path, monkeypatch, capsys):
    def fail(*args):
        raise RuntimeError("CUDA error: out of memory\nmore")

    training = Training(tmp_path)
    monkeypatch.setattr(training.background.copies, "allocate", fail)
    training.step(10)
    training.wait()
    training.step(20)
    assert latest(tmp_path).name == "checkpoint-20"
    assert capsys.readouterr().out == "training waits while a checkpoint is written: CUDA error: out of memory\n"


def test_variable_is_0_or_1(monkeypatch):
    monkeypatch.setenv("VERDICT_CHECKPOINT_BACKGROUND", "yes")
    with pytest.raises(UserError, match="VERDICT_CHECKPOINT_BACKGROUND is 'yes'; it must be 0 or 1"):
        background_writer(None)
