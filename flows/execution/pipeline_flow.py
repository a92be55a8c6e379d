"""The pipeline as a Prefect flow: one task for each stage of dvc.yaml."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

from prefect import Task, flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFuture, wait
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled, Completed, Failed

from flows import alerts, console
from flows.execution import remote
from flows.execution.execution import Execution
from flows.execution.lifeline import lifeline
from flows.execution.waiting import patiently
from flows.planned import Outcome, Stage
from flows.servers import temporary
from stages.contract.errors import UserError
from stages.contract.tracking import locations, pipelines
from stages.evaluation.reporting.page import PAGE, write_page

WHOLE_REPORT = f"\n\nThe whole report: `{PAGE}`, and in MLflow the artifact `{PAGE.name}` of this pipeline's run.\n"


@flow(name="pipeline", persist_result=False, **alerts.HOOKS)
def pipeline(stages: list[str] | None = None, force: list[str] | None = None, root: str = ".") -> State:
    """Bring ``stages`` (all) of the DVC repository at ``root`` and what they depend on up to date.

    Final state: Completed; Failed, naming the failed stages and those not run because of them; Cancelled after
    SIGINT or SIGTERM, with every stage's processes gone.
    """
    folder = Path(root).resolve()
    tag_run(folder)
    log = get_run_logger()

    def say(line: str) -> None:
        log.warning("%s", line, extra={"stage": "pipeline"})

    try:
        restored, planned = patiently(
            lambda: remote.restore_and_plan(folder, stages or (), force or (), say), folder, say
        )
    except UserError as e:
        return Failed(message=str(e))
    log.info("%s", console.plan_table(planned, pipelines.stage_seconds(folder), restored))
    with lifeline() as held:
        return _pipeline(Execution(folder, planned, f"{flow_run.name}-{flow_run.id}", alerts.this_run(), held))


def tag_run(root: Path) -> None:
    """Tag the current flow run with the repository and the branch at ``root``: a team's runs are in one list."""
    home = locations.home(root)
    command = ["git", "-C", str(home), "branch", "--show-current"]
    branch = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    tags = {*flow_run.tags, f"repository:{home.name}", *([f"branch:{branch}"] if branch else [])}
    with get_client(sync_client=True) as client:
        client.update_flow_run(UUID(flow_run.id), tags=tags)


def _pipeline(execution: Execution) -> State:
    planned, root = execution.planned, execution.root
    states = _run_tasks(execution)
    _write_report(states, root)
    if any(not stage.fresh for stage in planned):
        pipelines.close_pipeline(execution.key, {name: state.name for name, state in states.items()}, root)
        for line in pipelines.news(locations.home(root), execution.key, pipelines.PATIENCE):
            get_run_logger().warning("%s", line, extra={"stage": "pipeline"})
    outcomes = execution.outcomes.copy()
    _publish(states, outcomes, root)
    if execution.lifeline.interrupted.is_set():
        return Cancelled(message="interrupted; finished stages are kept, and the next run resumes from there")
    if all(state.is_completed() for state in states.values()):
        ran = sum(outcome.state == "Completed" for outcome in outcomes.values())
        return Completed(message=f"Up to date (ran: {ran}, cached: {len(states) - ran})")
    not_run = [name for name, state in states.items() if state.name == "NotReady"]
    # A stage with neither an outcome nor a failed dependency failed in the flow itself.
    lost = {
        name: Outcome("Failed", states[name].message or "") for name in states.keys() - outcomes.keys() - {*not_run}
    }
    return Failed(message=console.failure_text(outcomes | lost, not_run))


def _run_tasks(execution: Execution) -> dict[str, State]:
    """Submit a task for each stage, upstream first, and return the state each ended in."""
    futures: dict[str, PrefectFuture[State]] = {}
    for stage in execution.planned:
        waits = [futures[name] for name in stage.upstream]
        futures[stage.name] = _task(stage, execution.outcome).submit(wait_for=waits)
    wait(list(futures.values()))
    return {name: future.state for name, future in futures.items()}


def _task(stage: Stage, execute: Callable[[Stage, Callable[[str], None]], Outcome]) -> Task:
    """``execute(stage, emit)`` as a Prefect task that logs the lines and is retried if the stage was preempted."""
    # With a tag it asks for a slot of its resource's concurrency limit. Cores have no limit, a fresh stage must not
    # wait, and on a server of this process's own there is nobody else. Not to ask is worth two seconds: SQLite often
    # answers that it is locked.
    free = stage.fresh or stage.resource == "cpu" or temporary.is_temporary(PREFECT_API_URL.value())

    @task(
        name=stage.name,
        task_run_name=stage.name,
        tags=[] if free else [stage.resource],
        retries=stage.retries,
        retry_delay_seconds=1,
        retry_condition_fn=_is_preempted,
        cache_policy=NO_CACHE,
        persist_result=False,
    )
    def stage_task() -> State:
        log = get_run_logger()
        outcome = execute(stage, lambda line: log.info("%s", line, extra={"stage": stage.name}))
        kind = {"Completed": Completed, "Cached": Completed, "Cancelled": Cancelled}.get(outcome.state, Failed)
        return kind(name=outcome.state, message=outcome.message or f"ran in {outcome.seconds:.1f} s")

    return stage_task


def _is_preempted(task: Task, task_run: TaskRun, state: State) -> bool:
    return state.name == "Preempted"


def _write_report(states: dict[str, State], root: Path) -> None:
    """Write reports/index.html if all stages up to the evaluation are up to date: else it would mix two runs."""
    if console.EVALUATION in states and all(state.is_completed() for state in states.values()):
        try:
            write_page(root)
        except (UserError, OSError) as e:  # costs no result
            get_run_logger().warning("%s", f"{PAGE} cannot be written: {e}", extra={"stage": "pipeline"})


def _publish(states: dict[str, State], outcomes: dict[str, Outcome], root: Path) -> None:
    """Show the stages, the closing summary and the filter's dropped documents as Prefect artifacts."""
    links = pipelines.run_links(root)
    rows = []
    for name, state in states.items():
        seconds = round(outcomes[name].seconds, 1) if name in outcomes else None
        row = {"stage": name, "state": state.name, "seconds": seconds, "message": state.message or ""}
        rows.append(row | {"mlflow run": links.get(name, {}).get("url", "")})
    create_table_artifact(key="stages", table=rows, description="Every stage and the MLflow run that made its result")
    for key, stage, name in (("summary", "eval", "summary.md"), ("rules", "filter", "rules.md")):
        page = root / "reports" / stage / name
        if stage in states and states[stage].is_completed() and page.exists():  # else it is of other models
            create_markdown_artifact(
                key=key, markdown=page.read_text(encoding="utf-8") + WHOLE_REPORT * (key == "summary")
            )
