"""What bears the name checkpoint-N is whole, and a run that was stopped ends in the same bytes."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stages.trainer.checkpoints import latest, publish

ROOT = Path(__file__).resolve().parents[2]


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


TRAIN = """
import sys, types
from pathlib import Path
import numpy as np
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed
from stages.contract.errors import Preempted
from stages.contract.params import load_params
from stages.corpus.packing import pack
from stages.scaling.shapes import llama
from stages.trainer import fit
from stages.trainer.rows import PackedRows
folder = Path(sys.argv[1]); (folder / "scratch").mkdir(parents=True, exist_ok=True)
draw = np.random.default_rng(0); lengths = draw.integers(3, 40, 90)
rows = pack(draw.integers(4, 128, lengths.sum()).astype(np.uint16), lengths, 32, pad=1, seed=0)
log = (folder / "log").open("a", buffering=1)
run = types.SimpleNamespace(scratch=folder / "scratch", params=load_params(),
                            log=lambda step, **m: log.write(f"{step}\\n"))
set_seed(0)
model = LlamaForCausalLM(LlamaConfig(**llama(128, 2, 2, 16, 32).config(), attention_dropout=0.1, use_cache=False))
args = TrainingArguments(**fit.arguments(run, 1e-2, 0.1), max_steps=60, per_device_train_batch_size=2,
                         gradient_accumulation_steps=2, use_cpu=True, dataloader_pin_memory=False)
trainer = Trainer(model=model, train_dataset=PackedRows(rows), args=args)
try:
    history = fit.fit(trainer, run, "toy")
except Preempted as e:
    print(e); sys.exit(75)
model.save_pretrained(folder / "model")
fit.write_curve(folder / "loss.csv", history, ["loss", "learning_rate", "grad_norm"])
"""


def start(folder, **env):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | env
    return subprocess.Popen([sys.executable, "-c", TRAIN, str(folder)], cwd=ROOT, env=environment,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip


def bytes_of(folder):
    files = [folder / "model" / "model.safetensors", folder / "loss.csv"]
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    process = start(folder)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return bytes_of(folder)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_stopped_half_way_it_resumes_to_the_same_bytes(tmp_path, uninterrupted, number):
    process = start(tmp_path, VERDICT_CHECKPOINT_SECONDS="0.01")
    log, deadline = tmp_path / "log", time.monotonic() + 200
    while not (log.exists() and len(log.read_text().splitlines()) > 15) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == (75 if number != signal.SIGKILL else -9), output
    kept = latest(tmp_path / "scratch")
    assert kept and json.loads((kept / "trainer_state.json").read_text())["global_step"] < 60
    second = start(tmp_path)
    output, _ = second.communicate(timeout=300)
    assert second.returncode == 0, output
    assert "resuming from step" in output
    assert bytes_of(tmp_path) == uninterrupted
