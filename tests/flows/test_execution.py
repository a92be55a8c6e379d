"""Stages on the way to their outcomes, without Prefect."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from flows.alerts import Source
from flows.execution import AHEAD, Execution, ahead
from flows.graph import plan
from flows.lifeline import lifeline
from stages.contract import places
from tests.flows.conftest import alive, wait_for
from tests.flows.test_pipeline import FAILING, LONG

GPUS = """
stages:
  a: {cmd: "date +%s.%N > a.txt; sleep 0.3; date +%s.%N >> a.txt", outs: [a.txt], meta: {resource: gpu}}
  b: {cmd: "date +%s.%N > b.txt; sleep 0.3; date +%s.%N >> b.txt", outs: [b.txt], meta: {resource: gpu}}
"""


@pytest.fixture
def executed():
    """A function from a repository to its execution, everything that can begin begun."""
    with lifeline() as line, ThreadPoolExecutor() as pool:

        def begin(root, show=lambda name, said: None):
            execution = Execution(root, plan(root), [], "key", Source("pipeline", "name", ""), line, show)
            execution.begin(pool)
            return execution

        yield begin
        line.cut()


def test_all_runs_without_anybody_to_ask_for_it_and_its_lines_wait_until_somebody_does(repo, executed):
    shown = []
    execution = executed(repo, lambda name, line: shown.append(f"{name}: {line}"))
    wait_for(lambda: len(execution.outcomes) == 4)
    assert {outcome.state for outcome in execution.outcomes.values()} == {"Completed"}
    assert (repo / "report.txt").read_text() == "2\nA\nB\n"
    times = {path: path.stat().st_mtime_ns for path in repo.glob("*.txt")}
    for stage in execution.planned:
        lines = []
        assert execution.outcome(stage, lines.append) is execution.outcomes[stage.name]
        assert [f"{stage.name}: {line}" for line in lines] == [s for s in shown if s.startswith(f"{stage.name}:")]
        assert lines[-1].startswith("done in")
    assert times == {path: path.stat().st_mtime_ns for path in repo.glob("*.txt")}


def test_nothing_begins_after_a_stage_that_did_not_end_well_and_asking_again_runs_it_again(make_repo, executed):
    execution = executed(make_repo(FAILING))
    wait_for(lambda: len(execution.outcomes) == 2)
    flaky, broken = (next(s for s in execution.planned if s.name == name) for name in ("flaky", "broken"))
    assert execution.outcome(broken, print).state == "Failed"
    assert execution.outcome(flaky, print).state == "Preempted"
    assert execution.outcome(flaky, print).state == "Completed"
    assert set(execution.outcomes) == {"flaky", "broken"}


def test_what_somebody_runs_is_not_begun_as_well(repo, executed):
    execution = executed(repo)
    outcomes = {stage.name: execution.outcome(stage, print) for stage in execution.planned}
    assert outcomes == execution.outcomes
    assert {outcome.state for outcome in outcomes.values()} == {"Completed"}


def test_two_stages_never_have_the_gpus_at_once(make_repo, executed):
    root = make_repo(GPUS)
    execution = executed(root)
    wait_for(lambda: len(execution.outcomes) == 2)
    (_, end), (begin, _) = sorted([float(at) for at in (root / f).read_text().split()] for f in ("a.txt", "b.txt"))
    assert end <= begin


def test_what_was_begun_for_a_flow_that_never_came_is_stopped_and_has_saved(make_repo):
    root = make_repo(LONG)
    shown = []
    with pytest.raises(OSError), ahead(root, plan(root), [], lambda name, line: shown.append(line)) as execution:
        assert AHEAD.get() is execution
        pid = int(wait_for(lambda: (root.parent / "pid").exists() and (root.parent / "pid").read_text()))
        raise OSError
    assert AHEAD.get() is None
    assert not alive(pid)
    assert "saved a step" in shown and shown[-1] == "interrupted"
    assert not (root / "after.txt").exists()
    end = json.loads((places.spools(root) / f"pipeline-{execution.key}" / "end.json").read_text())
    assert (end["status"], end["states"]) == ("FAILED", {"long": "Cancelled", "after": "NotReady"})
