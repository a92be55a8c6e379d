import os
import re
import threading

import pytest

from flows.graph import Stage, plan
from flows.stage import is_chatter, outcome, run
from tests.flows.conftest import alive, edit, wait_for


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


def test_early_cut_off(built, lifeline):
    edit(built / "params.yaml", "seed: 0", "seed: 1")
    assert execute(built, lifeline) == {"lines": "Completed", "report": "Cached"}


def test_result_lost_from_the_workspace_comes_back_from_the_cache(built, lifeline):
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


def test_preempted_stage_is_told_apart(make_repo, lifeline):
    root = make_repo("stages: {a: {cmd: 'sh -c \"exit 75\"', outs: [a.txt]}}")
    assert execute(root, lifeline) == {"a": "Preempted"}


def test_timeout_comes_from_meta(make_repo, lifeline):
    root = make_repo("stages: {a: {cmd: sleep 60, outs: [a.txt], meta: {timeout: 2}}}")
    (stage,) = plan(root)
    result = run(stage, root, lambda line: None, {}, lifeline[0])
    assert (result.state, result.message) == ("TimedOut", "stopped after its timeout of 2 s")


def test_closing_the_lifeline_stops_the_stage(make_repo, lifeline):
    root = make_repo("stages: {a: {cmd: 'sh -c \"echo \\$\\$ > pid; exec sleep 60\"', outs: [a.txt]}}")
    (stage,) = plan(root)
    results = []
    thread = threading.Thread(target=lambda: results.append(run(stage, root, print, {}, lifeline[0])))
    thread.start()
    pid = int(wait_for(lambda: (root / "pid").exists() and (root / "pid").read_text()))
    os.close(lifeline[1])
    thread.join(20)
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
    ],
)
def test_outcome(code, line, state, message):
    result = outcome(Stage("a", (), ()), code, ["> x", line], 1.0)
    assert result.state == state
    assert re.search(message, result.message)
    # An error of DVC's own is all there is to show; one that repeats the command's exit is not.
    assert result.tail == ((line,) if message == "dvc exited with 255" else ())
