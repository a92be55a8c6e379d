import os
import re
import subprocess
import threading

import pytest

from flows.execution.graph import plan
from flows.execution.stage_process import is_chatter, outcome, run
from flows.planned import Stage
from stages.contract.identity import locked_stages
from tests.flows.conftest import PATIENCE, alive, edit, wait_for


@pytest.fixture
def lifeline():
    read, write = os.pipe()
    yield read, write
    os.close(read)


def execute(root, lifeline, emit=lambda line: None, targets=()):
    """Run what the plan says must run, in order: {stage: state}."""
    return {s.name: run(s, root, emit, {}, lifeline[0]).state for s in plan(root, targets) if not s.fresh}


def test_first_run_then_nothing_to_do(repo, lifeline):
    lines = []
    assert execute(repo, lifeline, lines.append, ["lines"]) == {"copy": "Completed", "lines": "Completed"}
    assert (repo / "lines.txt").read_text().strip() == "2"
    # What stays on the terminal. DVC's wording is not ours and may change.
    assert [line for line in lines if not is_chatter(line)] == [
        "> sh -c 'echo copying; cat data.txt > copy.txt'",
        "copying",
        "> sh -c 'wc -l < copy.txt > lines.txt'",
    ]
    assert execute(repo, lifeline, targets=["lines"]) == {}


CHANGES = {  # one key of each: stage, key, as it is shipped, changed
    "sizing": ("max_epochs", "4", "5"),
    "dedup": ("threshold", "0.7", "0.8"),
    "dpo": ("beta", "0.1", "0.2"),
}
READERS = "stages:\n" + "".join(
    f"""  {stage}:
    cmd: sh -c 'echo ran >> {stage}.log; grep -A 9 ^{stage} params.yaml | grep " {key}:" | cut -d"#" -f1 > {stage}.txt'
    deps: [data.txt]
    params: [{stage}]
    outs: [{stage}.txt]
"""
    for stage, (key, _, _) in CHANGES.items()
)


def change(root, way, sign, lifeline):
    """Set every key to its shipped (-1) or its changed (1) value and bring the outs there by ``way``."""
    if way == "dvc exp run":
        keys = [f"{stage}.{key}={pair[sign]}" for stage, (key, *pair) in CHANGES.items()]
        command = ["dvc", "exp", "run", "-q", *[word for text in keys for word in ("-S", text)]]
    else:
        for key, *pair in CHANGES.values():
            old, new = pair if sign else pair[::-1]
            edit(root / "params.yaml", f"  {key}: {old} ", f"  {key}: {new} ")
        command = ["dvc", "repro", "-q"]
    if way == "the flow":
        execute(root, lifeline)
    else:
        subprocess.run(command, cwd=root, check=True)


def test_key_changed_and_changed_back_has_the_right_result(make_repo, lifeline):
    """DVC's run cache once left the keys of section `size` out of its key."""
    root = make_repo(READERS)
    for command in (["git", "add", "."], ["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one"]):
        subprocess.run(command, cwd=root, check=True)
    execute(root, lifeline)
    for way in ("dvc repro", "the flow", "dvc exp run"):
        for sign in (1, 0):
            change(root, way, sign, lifeline)
            entries = locked_stages((root / "dvc.lock").read_text())
            for stage, (key, *pair) in CHANGES.items():
                assert (root / f"{stage}.txt").read_text().strip() == f"{key}: {pair[sign]}", way
                assert entries[stage]["params"]["params.yaml"][stage][key] == float(pair[sign]), way
    for stage in CHANGES:
        assert (root / f"{stage}.log").read_text() == "ran\nran\n", "once a value; restored from the run cache else"


def test_early_cut_off(built, lifeline):
    edit(built / "params.yaml", "seed: 0", "seed: 1")
    assert execute(built, lifeline) == {"lines": "Completed", "report": "Cached"}


def test_lost_result_comes_back_from_the_cache(built, lifeline):
    (built / "report.txt").unlink()
    assert execute(built, lifeline) == {"report": "Cached"}
    assert (built / "report.txt").read_text() == "2\nA\nB\n"


def test_force_runs_an_unchanged_stage(built, lifeline):
    forced = next(s for s in plan(built, ["copy"], ["copy"]) if s.force)
    assert run(forced, built, lambda line: None, {}, lifeline[0]).state == "Completed"


def test_extra_environment_reaches_the_stage(make_repo, lifeline):
    root = make_repo("stages: {a: {cmd: 'sh -c \"echo $VERDICT_PIPELINE > a.txt\"', outs: [a.txt]}}")
    (stage,) = plan(root)
    assert run(stage, root, lambda line: None, {"VERDICT_PIPELINE": "key"}, lifeline[0]).state == "Completed"
    assert (root / "a.txt").read_text() == "key\n"


def test_failure_carries_exit_code_and_the_stages_own_last_lines(make_repo, lifeline):
    root = make_repo("stages: {a: {cmd: 'sh -c \"echo 1; echo bad input >&2; exit 3\"', outs: [a.txt]}}")
    (stage,) = plan(root)
    result = run(stage, root, lambda line: None, {}, lifeline[0])
    assert (result.state, result.message, result.tail) == ("Failed", "exited with 3", ("1", "bad input"))


def test_preempted_stage_has_its_own_state(make_repo, lifeline):
    root = make_repo("stages: {a: {cmd: 'sh -c \"exit 75\"', outs: [a.txt]}}")
    assert execute(root, lifeline) == {"a": "Preempted"}


def test_timeout_comes_from_meta(make_repo, lifeline):
    root = make_repo("stages: {a: {cmd: sleep 600, outs: [a.txt], meta: {timeout: 2}}}")
    (stage,) = plan(root)
    result = run(stage, root, lambda line: None, {}, lifeline[0])
    assert (result.state, result.message) == ("TimedOut", "stopped after its timeout of 2 s")


def test_closing_the_lifeline_stops_the_stage(make_repo, lifeline):
    root = make_repo("stages: {a: {cmd: 'sh -c \"echo \\$\\$ > pid; exec sleep 600\"', outs: [a.txt]}}")
    (stage,) = plan(root)
    results = []
    thread = threading.Thread(target=lambda: results.append(run(stage, root, print, {}, lifeline[0])))
    thread.start()
    pid = int(wait_for(lambda: (root / "pid").exists() and (root / "pid").read_text()))
    os.close(lifeline[1])
    thread.join(PATIENCE)
    assert results[0].state == "Cancelled"
    assert not alive(pid)


@pytest.mark.parametrize(
    ("code", "line", "state", "message"),
    [
        (0, "Stage 'a' didn't change, skipping", "Cached", "unchanged"),
        (255, "ERROR: failed to reproduce 'a': failed to run: x, exited with -9", "Failed", "SIGKILL.*memory"),
        (255, "ERROR: failed to reproduce 'a': failed to run: x, exited with 137", "Failed", "SIGKILL.*memory"),
        (255, "ERROR: failed to reproduce 'a': failed to run: x, exited with -11", "Failed", "killed by SIGSEGV"),
        (255, "ERROR: failed to reproduce 'a': failed to run: x, exited with 1", "Failed", "exited with 1"),
        (255, "ERROR: failed to reproduce 'a': output 'x' is already tracked", "Failed", "dvc exited with 255"),
        (0, "ERROR: failed to transfer 'md5: 0a'", "Failed", "DVC could not put its outs into the cache"),
        (255, "ERROR: failed to reproduce 'a': failed to run: x, exited with -15", "Preempted", "before it had"),
        (255, "ERROR: failed to reproduce 'a': failed to run: x, exited with 130", "Preempted", "before it had"),
        (137, "training", "Preempted", "its dvc was killed by SIGKILL"),
        (143, "training", "Preempted", "its dvc was killed by SIGTERM"),
    ],
)
def test_outcome(code, line, state, message):
    result = outcome(Stage("a", (), ()), code, ["> x", line], 1.0)
    assert result.state == state
    assert re.search(message, result.message)
    # An error of DVC's own is all there is to show; one that repeats the command's exit is not.
    assert result.tail == (() if re.match("ERROR: failed to reproduce .* exited|Stage", line) else (line,))
