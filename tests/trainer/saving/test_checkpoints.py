"""What bears the name checkpoint-N is whole, and a run that was stopped ends in the same bytes."""

import functools
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch

from stages.contract import disk
from stages.contract.errors import Preempted
from stages.trainer.saving.checkpoints import Checkpoints, latest
from stages.trainer.saving.sealing import numbered, publish

ROOT = Path(__file__).resolve().parents[3]


def written(scratch, step, content=b"weights"):
    folder = scratch / "partial" / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(content)
    return folder


def test_published_is_moved_whole_and_verified(tmp_path):
    publish(written(tmp_path, 10), tmp_path)
    publish(written(tmp_path, 9), tmp_path)
    assert latest(tmp_path).name == "checkpoint-10"
    assert not list((tmp_path / "partial").iterdir())


def test_what_was_only_being_written_is_not_seen(tmp_path):
    written(tmp_path, 10)
    assert latest(tmp_path) is None


@pytest.mark.parametrize("damage", ["truncated", "changed", "missing file", "no manifest"])
def test_a_damaged_newest_gives_way_to_the_one_before(tmp_path, capsys, damage):
    publish(written(tmp_path, 9), tmp_path)
    newest = publish(written(tmp_path, 10), tmp_path)
    weights = newest / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(b"weig")
    elif damage == "changed":
        weights.write_bytes(b"weighty")
    elif damage == "missing file":
        weights.unlink()
    else:
        (newest / "manifest.json").unlink()
    assert latest(tmp_path).name == "checkpoint-9"
    assert "checkpoint-10 is damaged" in capsys.readouterr().out


class Training:
    """A training of ``saves`` checkpoints as a Trainer does it; ``write`` writes the weights or raises."""

    def __init__(self, scratch):
        self.callback = Checkpoints(scratch)
        self.args = types.SimpleNamespace(output_dir=str(scratch / "partial"))
        self.scratch, self.model = scratch, torch.nn.Linear(10, 10)
        self.callback.fixed = self.callback.interval = 1e-9

    def step(self, step, write):
        state = types.SimpleNamespace(global_step=step, max_steps=100)
        control = types.SimpleNamespace(should_save=False, should_training_stop=False)
        self.callback.on_step_end(self.args, state, control, model=self.model)
        if control.should_save:
            self.callback.guard(lambda: write(written(self.scratch, step)))()
            self.callback.on_save(self.args, state, control, model=self.model)
        return control


def no_room(error):
    def write(folder):
        (folder / "model.safetensors").write_bytes(b"wei")
        raise error

    return write


@pytest.mark.parametrize(
    ("error", "says"),
    [(OSError(28, "No space left on device"), "no room for checkpoints in {} (needs 0.0 MB, has "),
     (OSError(122, "Disk quota exceeded"), "no room for checkpoints in {} (needs "),
     (OSError(30, "Read-only file system"), "checkpoints cannot be written in {} (Read-only file system)"),
     (OSError(13, "Permission denied"), "checkpoints cannot be written in {} (Permission denied)"),
     (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 1 vs 2"), "checkpoints cannot be"),
     (Exception("Error while serializing: I/O error: No space left on device (os error 28)"), "no room for check")],
)  # fmt: skip
def test_training_goes_on_where_checkpoints_find_no_room(tmp_path, capsys, error, says):
    training = Training(tmp_path)
    training.step(10, lambda folder: None)
    for step in (20, 30):
        training.step(step, no_room(error))
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(says.format(tmp_path)) and "training goes on without" in line
    assert latest(tmp_path).name == "checkpoint-10"
    assert not list((tmp_path / "partial").iterdir()), "what was written in part keeps its room"
    training.step(40, lambda folder: None)
    assert latest(tmp_path).name == "checkpoint-40"
    assert capsys.readouterr().out == f"checkpoints are written again in {tmp_path}\n"


def test_older_checkpoint_makes_room_for_a_new_one(tmp_path, capsys, monkeypatch):
    training = Training(tmp_path)
    for step in (10, 20):
        training.step(step, lambda folder: None)
    monkeypatch.setattr(disk, "free", lambda place: 10**9 if len(numbered(tmp_path)) < 2 else 0)
    training.step(30, lambda folder: None)
    assert [p.name for p in numbered(tmp_path)] == ["checkpoint-30", "checkpoint-20"]
    monkeypatch.setattr(disk, "free", lambda place: 3)
    assert not training.step(40, no_room(AssertionError("it was not to be tried"))).should_save
    assert "no room for checkpoints in" in capsys.readouterr().out
    assert [p.name for p in numbered(tmp_path)] == ["checkpoint-30"]


def test_signal_without_room_says_where_the_next_run_begins(tmp_path, monkeypatch):
    training = Training(tmp_path)
    training.step(10, lambda folder: None)
    monkeypatch.setattr(disk, "free", lambda place: 0)
    training.callback._stop(signal.SIGTERM, None)
    assert training.step(20, no_room(AssertionError("it was not to be tried"))).should_training_stop
    with pytest.raises(Preempted, match=r"SIGTERM at step 20 of 100; no room .*; the next run resumes from step 10 "):
        training.callback.on_train_end(training.args, types.SimpleNamespace(global_step=20, max_steps=100), None)


# A process each training, but only the first imports, which takes three times as long as the training.
TRAIN = """
import json, os, sys, types
from pathlib import Path
import numpy as np
import stages.trainer.loop
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed
from stages.trainer.saving.background import SavesInBackground
from stages.contract.errors import Preempted
from stages.contract.params import load_params
from stages.corpus.tokens.packing import pack
from stages.scaling.shapes import llama
from stages.trainer.loop import fit
from stages.trainer.loop.history import write_curve
from stages.trainer.loop.rows import PackedRows
for line in sys.stdin:
    place, variables = json.loads(line)
    if (pid := os.fork()) == 0:
        break
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
else:
    sys.exit()
os.environ.update(variables)
os.dup2(os.open(place + "/output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1); os.dup2(1, 2)
folder = Path(place); (folder / "scratch").mkdir(parents=True, exist_ok=True)
draw = np.random.default_rng(0); lengths = draw.integers(3, 40, 90)
rows = pack(draw.integers(4, 128, lengths.sum()).astype(np.uint16), lengths, 32, pad=1, seed=0)
log = (folder / "log").open("a", buffering=1)
run = types.SimpleNamespace(scratch=folder / "scratch", params=load_params(),
                            log=lambda step, **m: log.write(f"{step}\\n"))
set_seed(0)
model = LlamaForCausalLM(LlamaConfig(**llama(128, 2, 2, 16, 32).config(), attention_dropout=0.1, use_cache=False))
args = TrainingArguments(**fit.training_arguments(run, 1e-2, 0.1), max_steps=60, per_device_train_batch_size=2,
                         gradient_accumulation_steps=2, use_cpu=True, dataloader_pin_memory=False)
trainer = type("Both", (SavesInBackground, Trainer), {})(model=model, train_dataset=PackedRows(rows), args=args)
try:
    history = fit.fit(trainer, run, "toy")
except Preempted as e:
    print(e); sys.exit(75)
model.save_pretrained(folder / "model")
write_curve(folder / "loss.csv", history, ["loss", "learning_rate", "grad_norm"])
(folder / "imported").write_text(" ".join(sys.modules))
"""
UNUSED = {"boto3", "datasets", "deepspeed", "mlflow", "scipy.optimize", "sklearn", "torchao"}  # by a training on a CPU


@functools.cache
def imported():
    """The process that has imported everything and forks a training for each line."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", TRAIN], cwd=ROOT, env=environment, text=True,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip


class Started:
    """A training in ``folder``, in a process of its own."""

    def __init__(self, folder, variables):
        self.folder = folder
        imported().stdin.write(json.dumps([str(folder), variables]) + "\n")
        imported().stdin.flush()
        self.pid = int(imported().stdout.readline())

    def send_signal(self, number):
        os.kill(self.pid, number)

    def end(self):
        """(exit code, output), once it has ended."""
        return int(imported().stdout.readline()), (self.folder / "output").read_text()


def start(folder, **variables):
    return Started(folder, variables)


def bytes_of(folder):
    files = [folder / "model" / "model.safetensors", folder / "loss.csv"]
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    code, output = start(folder).end()
    assert code == 0, output
    yield bytes_of(folder)
    imported().communicate()


@pytest.mark.parametrize(("number", "background"), [(signal.SIGKILL, "1"), (signal.SIGTERM, "1"), (signal.SIGINT, "0")])
def test_stopped_half_way_it_resumes_to_the_same_bytes(tmp_path, uninterrupted, number, background):
    process = start(tmp_path, VERDICT_CHECKPOINT_SECONDS="0.01", VERDICT_CHECKPOINT_BACKGROUND=background)
    log, deadline = tmp_path / "log", time.monotonic() + 200
    while not (log.exists() and len(log.read_text().splitlines()) > 15) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(number)
    code, output = process.end()
    assert code == (75 if number != signal.SIGKILL else -9), output
    kept = latest(tmp_path / "scratch")
    assert kept and json.loads((kept / "trainer_state.json").read_text())["global_step"] < 60
    code, output = start(tmp_path).end()
    assert code == 0, output
    assert "resuming from step" in output
    assert bytes_of(tmp_path) == uninterrupted
    assert not UNUSED & {*(tmp_path / "imported").read_text().split()}, "they would double the seconds of a start"
