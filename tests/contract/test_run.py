"""One stage execution in a real DVC repository: outs, exit codes, identity, resume."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from stages.contract.identity import Identity, identify, locked_fingerprint
from stages.contract.scratch import forget, locked_scratch
from tests.contract.conftest import ROOT


def scratches(repo):
    return [p for p in (repo / ".dvc/cache-checkpoints/toy").glob("*") if p.is_dir()]


def spooled(repo):
    (folder,) = (repo / ".verdict/spool").iterdir()
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return folder, [json.loads(line) for line in lines]


def test_a_finished_stage_leaves_outs_report_and_spool_but_no_checkpoint(repo, dvc):
    done = dvc("repro")
    assert done.returncode == 0, done.stderr
    assert Path("out/toy/text").read_text() == "SOME WORDS"
    assert json.loads(Path("reports/toy/metrics.json").read_text())["letters"] == 10
    assert scratches(repo) == []
    folder, lines = spooled(repo)
    end = json.loads((folder / "end.json").read_text())
    assert end["status"] == "FINISHED"
    assert end["metrics"]["nested.half"] == 0.5
    assert "name" not in end["metrics"]
    assert [line["s"] for line in lines] == list(range(20))


def test_the_fingerprint_equals_that_of_the_lock_entry(repo, dvc):
    before = identify("toy", repo).fingerprint
    assert dvc("repro").returncode == 0
    entry = YAML(typ="safe").load(Path("dvc.lock"))["stages"]["toy"]
    assert locked_fingerprint(entry) == before
    folder, _ = spooled(repo)
    outs = {out["path"]: out["md5"] for out in entry["outs"]}
    assert json.loads((folder / "end.json").read_text())["outs"] == outs


def test_two_runs_record_the_same_lock(repo, dvc):
    assert dvc("repro").returncode == 0
    first = Path("dvc.lock").read_bytes()
    assert dvc("repro", "--force").returncode == 0
    assert Path("dvc.lock").read_bytes() == first


@pytest.mark.parametrize(
    ("behaviour", "code", "says"),
    [
        ("user error", 1, "toy: dedup.ngram: 0 is too small. Use at least 1."),
        ("preempted", 75, "toy: SIGTERM at step 5 of 9"),
    ],
)
def test_what_the_person_can_mend_is_one_line_and_a_code(repo, behaviour, code, says):
    Path("behaviour").write_text(behaviour)
    done = subprocess.run([sys.executable, "-m", "tests.contract.toy"], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert done.stderr.splitlines() == [says]


def test_a_bug_keeps_its_traceback_and_fails_the_run(repo):
    Path("behaviour").write_text("bug")
    done = subprocess.run([sys.executable, "-m", "tests.contract.toy"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ZeroDivisionError: a bug" in done.stderr
    folder, _ = spooled(repo)
    assert json.loads((folder / "end.json").read_text())["status"] == "FAILED"


def test_inputs_edited_during_the_run_fail_it_and_no_work_of_theirs_is_used(repo, dvc):
    Path("behaviour").write_text("edit")
    done = dvc("repro")
    assert done.returncode != 0
    assert "input.txt changed while the stage ran" in done.stderr
    assert not Path("dvc.lock").exists()
    assert not list(repo.glob(".dvc/cache-checkpoints/toy/*/steps"))
    Path("behaviour").unlink()
    Path("input.txt").write_text("some words")
    done = dvc("repro")
    assert "resuming" not in done.stdout and Path("out/toy/text").read_text() == "SOME WORDS"


def test_killed_half_way_it_resumes_and_ends_in_the_same_bytes(repo, dvc):
    assert dvc("repro").returncode == 0
    uninterrupted = Path("dvc.lock").read_bytes()
    Path("dvc.lock").unlink()
    shutil.rmtree(repo / ".verdict/spool")
    Path("behaviour").write_text("die")
    assert dvc("repro", "--no-run-cache").returncode != 0
    assert len(scratches(repo)) == 1
    Path("behaviour").unlink()
    done = dvc("repro", "--no-run-cache")
    assert done.returncode == 0, done.stderr
    assert "resuming from step 5" in done.stdout
    assert Path("dvc.lock").read_bytes() == uninterrupted
    _, lines = spooled(repo)
    assert [line["s"] for line in lines] == list(range(20)), "one point a step, also for those repeated after the kill"


def has_checkpoint(scratch):
    return (scratch / "steps").exists() and (scratch / "steps").read_text() not in ("", "0")


MATRIX = """
stages:
  toy:
    matrix: {{row: "${{rows}}"}}
    cmd: {python} -m tests.contract.toy ${{item.row.times}} ${{item.row.half}}
    deps: [input.txt]
    params: [seed]
    outs: ["out/toy/${{item.row.times}}-${{item.row.half}}", "reports/toy/${{item.row.times}}-${{item.row.half}}"]
"""


def with_rows(rows):
    """The toy as a matrix over ``rows``, texts of YAML."""
    Path("dvc.yaml").write_text(MATRIX.format(python=sys.executable))
    Path("rows.yaml").write_text(f"rows: [{', '.join(rows)}]\n")
    Path("dvc.yaml").write_text("vars: [rows.yaml]\n" + Path("dvc.yaml").read_text())


def test_rows_of_a_matrix_run_alone_with_outs_by_value(repo, dvc):
    one, two, three = "{times: 1, half: 0.5}", "{times: 2, half: 0.5}", "{times: 3, half: 5.0e-1}"
    with_rows([one, two])
    done = dvc("repro")
    assert done.returncode == 0, done.stderr
    assert [Path(f"out/toy/{n}-0.5/text").read_text() for n in (1, 2)] == ["SOME WORDS", "SOME WORDS" * 2]
    spools = [json.loads(path.read_text()) for path in (repo / ".verdict/spool").glob("*/run.json")]
    assert {(run["stage"], run["params"]["times"]) for run in spools} == {("toy@row0", "1.0"), ("toy@row1", "2.0")}
    for name, entry in YAML(typ="safe").load(Path("dvc.lock"))["stages"].items():
        assert locked_fingerprint(entry) == identify(name, repo).fingerprint
    with_rows([one, two, three])
    assert re.findall("Running stage '(.*)'", dvc("repro").stdout) == ["toy@row2"]
    with_rows([three, one])
    done = dvc("repro")
    assert re.findall("Running stage '(.*)'", done.stdout) == [], "restored from the run cache: only names changed"
    assert Path("out/toy/3-0.5/text").exists() and done.returncode == 0, done.stderr


def test_a_command_that_is_no_stage_is_refused(repo):
    with_rows(["{times: 1, half: 0.5}"])
    command = [sys.executable, "-m", "tests.contract.toy", "7", "0.5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "dvc.yaml has no stage with the command '-m tests.contract.toy 7 0.5'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_same_work_runs_once_and_the_next_waits(repo):
    command = [sys.executable, "-m", "tests.contract.toy"]
    first = subprocess.Popen(command, env=os.environ | {"TOY_SECONDS": "1"}, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not any(has_checkpoint(s) for s in scratches(repo)) and time.monotonic() < deadline:
            time.sleep(0.1)
        second = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert second.stdout.readline() == f"waiting for process {first.pid}, which does the same work, 60 s at most\n"
        first.kill()
        assert second.communicate(timeout=60)[0].startswith("resuming from step")
        assert second.returncode == 0
    finally:
        first.kill()
        first.wait()


def test_outside_a_dvc_repository_it_says_so(tmp_path, repo, monkeypatch):
    other = tmp_path.parent / f"{tmp_path.name}-other"
    other.mkdir()
    monkeypatch.chdir(other)
    (other / "params.yaml").write_text((repo / "params.yaml").read_text())
    done = subprocess.run([sys.executable, "-m", "tests.contract.toy"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("toy: ")
    assert "Traceback" not in done.stderr


def test_checkpoints_are_forgotten_unless_somebody_is_at_work_on_them(tmp_path):
    identity = Identity("sft", "f" * 64, {}, {}, tmp_path / "cache")
    with locked_scratch(identity) as folder:
        (folder / "checkpoint-1").touch()
        forget(identity)
        assert (folder / "checkpoint-1").exists()
    forget(identity)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("number", "code", "says"),
    [
        (signal.SIGINT, 130, "sft: interrupted"),
        (signal.SIGTERM, 75, "sft: preempted by SIGTERM; the next run resumes from the finished work"),
    ],
)
def test_signal_during_imports_is_one_line_with_exit_code(repo, number, code, says):
    command = [sys.executable, "-m", "stages.sft"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    caught = 1 << (number - 1)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        both = 1 << (signal.SIGTERM - 1) | caught  # Python itself catches SIGINT before it runs a line of ours
        if int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16) & both == both:
            break
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output.splitlines()) == (code, [says])


def test_folder_for_checkpoints_that_cannot_be_made_is_one_line(repo, monkeypatch):
    Path("a-file").write_text("")
    monkeypatch.setenv("VERDICT_CHECKPOINTS", "a-file/checkpoints")
    done = subprocess.run([sys.executable, "-m", "tests.contract.toy"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("toy: the folder for checkpoints, a-file/checkpoints/toy/") and "Not a directory" in line


def test_full_disk_is_one_line_with_its_place(repo):
    Path("behaviour").write_text("full disk")
    done = subprocess.run([sys.executable, "-m", "tests.contract.toy"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("toy: ") and "No space left on device" in line and "MB are free" in line


def test_checkpoints_are_kept_for_who_judges_them(repo):
    environment = os.environ | {"VERDICT_KEEP_CHECKPOINTS": "1"}
    subprocess.run([sys.executable, "-m", "tests.contract.toy"], env=environment, check=True)
    assert len(scratches(repo)) == 1
