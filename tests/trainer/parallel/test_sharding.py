"""However training is divided among processes, it is the same training; and however it is ended, nothing is left over.

Two processes on the CPU, started as a stage starts them. One job trains in all ways one after the other: most of a
process's time is its imports.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from stages.trainer.saving import sealing

ROOT = Path(__file__).resolve().parents[3]
SAME = ("ddp", "fsdp", "zero2", "zero3")
TAUGHT = tuple(f"taught-{way}" for way in SAME)
KTO = ("kto", "sharded-kto")
MUP = ("mup-fsdp", "mup-zero2", "mup-zero3")
WAYS = (*SAME, *TAUGHT, *MUP, "bf16", "powersgd", "local", *KTO)

DVC_YAML = f"""
stages:
  toy:
    cmd: {sys.executable} -m tests.trainer.toy
    deps: [ways]
    params: [seed]
    outs: [out/toy]
"""


@dataclass
class Result:
    """What a way of training left: a loss a step, kto's reference points, the saved folder, and each process's own
    weights."""

    losses: list[float]
    points: list[float]
    folder: Path
    own: list[dict]


def command():
    return [sys.executable, "-m", "tests.trainer.toy"]


def repository(folder, ways):
    """A DVC repository whose stage trains in these ways."""
    subprocess.run(["git", "init", "-q"], check=True, cwd=folder)
    (folder / ".dvc/tmp").mkdir(parents=True)  # as `dvc init`, which takes a second
    (folder / ".dvc/config").write_text("[core]\n    analytics = false\n")
    shutil.copy(ROOT / "params.yaml", folder)
    (folder / "dvc.yaml").write_text(DVC_YAML)
    (folder / "ways").write_text("\n".join(ways))
    return folder


def environment(**more):
    clean = {k: v for k, v in os.environ.items() if k not in ("VERDICT_PIPELINE", "VERDICT_WORKER")}
    return clean | {"PYTHONPATH": str(ROOT), "VERDICT_TRACKING": "off", "OMP_NUM_THREADS": "1"} | more


def result(folder, way):
    from safetensors.torch import load_file

    own = [load_file(file) for file in sorted(folder.glob(f"{way}-*.safetensors"))]
    values = [json.loads((folder / f"{way}-0-{name}.json").read_text()) for name in ("loss", "reference_point")]
    return Result(*values, folder / way, own)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return alone(tmp_path_factory.mktemp("one"), "one")


def alone(folder, way):
    """Trained in one process, this one."""
    from stages.contract import Run
    from stages.contract.params import load_params
    from stages.contract.tracking.spool import NoSpool
    from tests.trainer import toy

    scratch, out = folder / "scratch", folder / "out"
    scratch.mkdir()
    out.mkdir()
    toy.train(Run("toy", load_params(ROOT / "params.yaml"), out, out, scratch, NoSpool()), way, 1)
    return result(out, way)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """By way, trained in two processes; and what the stage printed."""
    folder = repository(tmp_path_factory.mktemp("two"), WAYS)
    done = subprocess.run(command(), cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {way: result(folder / "out/toy", way) for way in WAYS} | {"printed": done}


@pytest.mark.parametrize("way", SAME)
def test_sharded_training_equals_one_process(one, two, way):
    from safetensors.torch import load_file

    assert two[way].losses == pytest.approx(one.losses, abs=1e-4)
    files = [{file.name for file in folder.iterdir()} for folder in (one.folder, two[way].folder)]
    assert files[0] == files[1]
    for file in files[0] - {"model.safetensors"}:
        assert (one.folder / file).read_bytes() == (two[way].folder / file).read_bytes(), file
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (one.folder, two[way].folder))
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert weight.dtype == theirs[name].dtype
        assert (weight - theirs[name]).abs().max() < 1e-4, name


def test_a_model_whose_head_is_its_embedding_is_put_together(tmp_path):
    from transformers import AutoModelForCausalLM

    from stages.trainer.loop import export
    from stages.trainer.model import models
    from tests.trainer import toy

    model = toy._model(tied=True)
    weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    models.save_model(export._plain(model, weights), toy._tokenizer(), tmp_path)
    for name, weight in AutoModelForCausalLM.from_pretrained(tmp_path).state_dict().items():
        assert weight.equal(model.state_dict()[name]), name


def test_a_teacher_beside_a_divided_student_teaches_the_same(two, tmp_path):
    expected = alone(tmp_path, "taught-one").losses
    for way in TAUGHT:
        assert two[way].losses == pytest.approx(expected, abs=1e-4), way


def test_mups_rates_are_kept_where_parameters_are_divided(one, two, tmp_path):
    expected = alone(tmp_path, "mup-one").losses
    assert expected[-1] != pytest.approx(one.losses[-1], abs=1e-3)
    for way in MUP:
        assert two[way].losses == pytest.approx(expected, abs=1e-4), way


def test_kto_s_reference_point_is_that_of_all_processes(two, tmp_path):
    one = alone(tmp_path, "one-kto")
    assert min(one.points) > 0.1 and len(set(one.points)) == len(one.points)
    for way in KTO:
        assert two[way].points == pytest.approx(one.points, abs=1e-3), way
        assert two[way].losses == pytest.approx(one.losses, abs=1e-4), way


@pytest.mark.parametrize("way", ["fsdp", "zero3"])
def test_no_process_holds_a_whole_weight(two, way):
    first, second = two[way].own
    whole = two["ddp"].own[0]
    for name, weight in whole.items():
        assert first[name].numel() + second[name].numel() == (weight.numel() if way == "fsdp" else 0), name


@pytest.mark.parametrize("way", ["bf16", "powersgd"])
def test_compressed_gradients_train_almost_as_well(two, way):
    assert two[way].losses != two["ddp"].losses
    assert two[way].losses[-1] < two[way].losses[0] - 0.2
    assert two[way].losses == pytest.approx(two["ddp"].losses, abs=0.02)


def test_local_steps_end_with_equal_weights(two):
    first, second = two["local"].own
    assert all(first[name].equal(second[name]) for name in first)
    assert two["local"].losses[-1] < two["local"].losses[0] - 0.2
    assert two["local"].losses != two["ddp"].losses


def test_rank_0_prints_and_nobody_else(two):
    assert two["printed"].stdout.count("ddp") <= len(two["ddp"].losses)
    assert "torchrun" not in two["printed"].stderr
    assert "Traceback" not in two["printed"].stderr


def started(folder, **env):
    return subprocess.Popen(
        command(), cwd=folder, env=environment(**env), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def steps(folder):
    """Steps whose loss was recorded."""
    files = list(folder.glob(".verdict/spool/*/metrics.jsonl"))
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [line["s"] for line in lines if "loss" in line["m"]]


def until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.05)


def workers(folder):
    """Processes that work in ``folder``, by id."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            inside = (process / "cwd").readlink() == folder
            alive = (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
            worker = inside and alive and b"VERDICT_WORKER=" in (process / "environ").read_bytes()
        except OSError:  # it has ended meanwhile
            continue
        if worker:
            found.append(int(process.name))
    return found


def test_stopped_and_killed_runs_end_in_the_same_weights(tmp_path, two):
    repository(tmp_path, ["ddp"])
    stage = started(tmp_path, TOY_SECONDS="0.5")
    until(lambda: 2 in steps(tmp_path))
    stage.terminate()
    _, told = stage.communicate(timeout=60)
    assert stage.returncode == 75, told
    assert told.count("SIGTERM at step") == 1
    assert len(told.splitlines()) == 1
    assert workers(tmp_path) == []
    stopped = max(steps(tmp_path))

    stage = started(tmp_path, TOY_SECONDS="0.5", VERDICT_CHECKPOINT_SECONDS="0.1", VERDICT_CHECKPOINT_BACKGROUND="1")
    until(lambda: stopped + 2 in steps(tmp_path))
    assert len(workers(tmp_path)) == 2
    stage.kill()
    printed, _ = stage.communicate(timeout=60)
    assert f"resuming from step {stopped}" in printed
    until(lambda: workers(tmp_path) == [], seconds=2)

    stage = started(tmp_path)
    printed, told = stage.communicate(timeout=120)
    assert stage.returncode == 0, told
    assert "resuming from step" in printed
    assert sorted(steps(tmp_path)) == sorted(set(steps(tmp_path))), "one point a step"
    last, uninterrupted = tmp_path / "out/toy/ddp/model.safetensors", two["ddp"].folder / "model.safetensors"
    assert last.read_bytes() == uninterrupted.read_bytes()


def published(folder):
    """Return the step of the newest checkpoint, or 0 if there is none."""
    folders = folder.glob(".dvc/cache-checkpoints/toy/*/*/checkpoint-*")
    return max((sealing.step_number(path) for path in folders), default=0)


def test_shards_written_in_the_background_resume_to_the_same_bytes(tmp_path, two):
    repository(tmp_path, ["fsdp"])
    stage = started(tmp_path, TOY_SECONDS="0.5", VERDICT_CHECKPOINT_SECONDS="0.1", VERDICT_CHECKPOINT_BACKGROUND="1")
    until(lambda: published(tmp_path) >= 3)
    stage.kill()
    stage.communicate(timeout=60)

    stage = started(tmp_path)
    printed, told = stage.communicate(timeout=120)
    assert stage.returncode == 0, told
    assert "resuming from step" in printed
    last, uninterrupted = tmp_path / "out/toy/fsdp/model.safetensors", two["fsdp"].folder / "model.safetensors"
    assert last.read_bytes() == uninterrupted.read_bytes()


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_another_number_of_processes_goes_on_with_the_same_rows(tmp_path, one, way):
    """One process, then two, of which one is killed, then one again: every step's loss is that of one process."""
    repository(tmp_path, [way])
    stage = started(tmp_path, TOY_SECONDS="0.5", TOY_ALONE="1")
    until(lambda: 2 in steps(tmp_path))
    stage.terminate()
    stage.communicate(timeout=60)
    assert stage.returncode == 75
    stopped = published(tmp_path)

    stage = started(tmp_path, TOY_SECONDS="0.5", VERDICT_CHECKPOINT_SECONDS="0.1", VERDICT_CHECKPOINT_BACKGROUND="1")
    until(lambda: published(tmp_path) >= stopped + 2)
    second = next(p for p in workers(tmp_path) if b"\0RANK=1\0" in Path(f"/proc/{p}/environ").read_bytes())
    os.kill(second, signal.SIGKILL)
    printed, told = stage.communicate(timeout=60)
    assert stage.returncode == 1 and "worker 1 was ended by SIGKILL" in told
    assert f"resuming from step {stopped}" in printed
    assert workers(tmp_path) == []
    stopped = published(tmp_path)

    stage = started(tmp_path, TOY_ALONE="1")
    printed, told = stage.communicate(timeout=120)
    assert stage.returncode == 0, told
    assert f"resuming from step {stopped}" in printed
    assert result(tmp_path / "out/toy", way).losses == pytest.approx(one.losses, abs=1e-4)


def test_errors_after_a_workers_work_change_nothing(tmp_path):
    repository(tmp_path, ["ddp", "abort-at-exit"])
    done = subprocess.run(command(), cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("fault", "says"),
    [("user-error", "toy: trainer.optimizer: 'x' is not one of them."), ("bug", "ZeroDivisionError: a bug of rank 1")],
)
def test_a_failure_in_a_worker_is_told_once(tmp_path, fault, says):
    repository(tmp_path, [fault])
    done = subprocess.run(command(), cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count(says) == 1
    assert done.stderr.count("Traceback") == (fault == "bug")
    assert fault == "bug" or done.stderr.splitlines() == [says]


@pytest.mark.parametrize(("own", "room", "machines"), [("2", 11, 2), ("2", 10, 1), ("1", 99, 1), ("3", 99, 1)])
def test_fsdp_holds_the_model_on_each_machine_that_has_room(monkeypatch, own, room, machines):
    from stages.trainer.parallel import sharding
    from tests.trainer import toy

    monkeypatch.setenv("LOCAL_WORLD_SIZE", own)
    recipe = replace(toy.recipe_for("fsdp", 4), memory={"weights": 1.0, "optimizer": 2.0, "working": 4.0}, room=room)
    assert sharding.replicas(recipe) == machines
