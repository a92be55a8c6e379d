"""Stages on the way to their outcomes, without Prefect."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from flows.alerts import AlertSource
from flows.execution.execution import Execution
from flows.execution.graph import plan
from flows.execution.lifeline import lifeline
from tests.flows.execution.test_pipeline import FAILING

GPUS = """
stages:
  a: {cmd: "date +%s.%N > a.txt; sleep 0.3; date +%s.%N >> a.txt", outs: [a.txt], meta: {resource: gpu}}
  b: {cmd: "date +%s.%N > b.txt; sleep 0.3; date +%s.%N >> b.txt", outs: [b.txt], meta: {resource: gpu}}
"""


@pytest.fixture
def executed():
    """A function from a repository to its execution."""
    with lifeline() as held:
        yield lambda root: Execution(root, plan(root), "key", AlertSource("pipeline", "name", ""), held)


def test_stages_run_in_order_and_their_lines_are_passed_on(repo, executed):
    execution, lines = executed(repo), []
    for stage in execution.planned:
        assert execution.outcome(stage, lines.append).state == "Completed"
    assert (repo / "report.txt").read_text() == "2\nA\nB\n"
    assert "copying" in lines and lines[-1].startswith("done in")
    assert list(execution.outcomes) == [stage.name for stage in execution.planned]


def test_preempted_stage_runs_again_when_asked_again(make_repo, executed):
    execution = executed(make_repo(FAILING))
    flaky, broken = (next(s for s in execution.planned if s.name == name) for name in ("flaky", "broken"))
    assert execution.outcome(broken, print).state == "Failed"
    assert execution.outcome(flaky, print).state == "Preempted"
    assert execution.outcome(flaky, print).state == "Completed"


def test_two_stages_never_have_the_gpus_at_once(make_repo, executed):
    root = make_repo(GPUS)
    execution = executed(root)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda stage: execution.outcome(stage, print), execution.planned))
    (_, end), (begin, _) = sorted([float(at) for at in (root / f).read_text().split()] for f in ("a.txt", "b.txt"))
    assert end <= begin


def test_nothing_begins_once_the_lifeline_is_cut(repo, executed):
    execution = executed(repo)
    execution.lifeline.cut()
    assert execution.outcome(execution.planned[0], print).state == "Cancelled"
    assert not (repo / "copy.txt").exists()
