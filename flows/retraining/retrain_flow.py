"""Retraining as a Prefect flow: take new data in, run the pipeline, and promote the model if the gate agrees."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed

from flows import alerts
from flows.execution.lifeline import lifeline
from flows.execution.pipeline_flow import pipeline, tag_run
from flows.execution.watching import watching
from flows.retraining import champion, git, promotion, registry, texts, workspace
from flows.retraining.branch import begin_retrain, nothing_to_do
from flows.retraining.gate import Decision, decide
from flows.retraining.scores import FINAL, MEASURE, Scores, headline, scores
from flows.retraining.workspace import Start
from stages.contract.errors import UserError
from stages.contract.identity import is_code
from stages.contract.params import Gate, load_params
from stages.contract.tracking import locations


@dataclass(frozen=True)
class Model:
    """One side of the comparison: the gate's metrics, and the closing table's few figures."""

    scores: dict[str, Scores]
    figures: dict[str, float]

    @classmethod
    def measured(cls, root: Path, gate: Gate) -> "Model":
        """Read the figures of the eval stage at ``root``."""
        names = [*gate.metrics.not_worse_by, *gate.metrics.better_by]
        return cls({name: scores(root, name) for name in names}, headline(root))


@flow(name="retrain", persist_result=False, **alerts.HOOKS)
def retrain(data: list[str] | None = None, inbox: str | None = None, root: str = ".") -> State:
    """Take new data in, bring the pipeline up to date in a worktree, and promote the model if it is better.

    Args:
        data: files, each ``path`` or ``SOURCE=path``.
        inbox: the folder new files arrive in, a sub-folder a source; without it VERDICT_INBOX, or `inbox` in root.
        root: the git and DVC repository. Its checkout changes only by a promotion, which moves it forward.

    Final state: Completed, named Promoted, Refused (by the gate; nothing is committed), Recorded (new inputs, the
    same model) or NothingNew; Cancelled, named Busy if another retrain is at work, or interrupted; Failed with a
    message, everything as before and finished stages kept.
    """
    repository = Path(root).resolve()
    tag_run(repository)
    try:
        with workspace.recorded_at(repository), workspace.hold_lock(repository, _say):
            return _retrain(begin_retrain(repository, data or [], inbox, alerts.this_run(), _say))
    except workspace.Busy as e:
        return Cancelled(name="Busy", message=str(e))
    except KeyboardInterrupt:
        return Cancelled(message="interrupted; nothing was promoted, and the next run resumes from the finished stages")
    except UserError as e:
        return Failed(message=str(e))


def _retrain(start: Start) -> State:
    if nothing_to_do(start):
        return Completed(name="NothingNew", message=texts.NOTHING_NEW)
    lines = start.intake.lines
    _say("\n".join(["new data:", *lines]) if lines else "no new data")
    ran = pipeline(root=str(start.tree), return_state=True)
    if not ran.is_completed():
        if ran.is_cancelled():
            return Cancelled(message=ran.message)
        return Failed(message=texts.retrain_failure(ran.message))
    git.stage_results(start.tree)
    with registry.registry_client(locations.home(start.repository)) as client:
        holder = registry.by_alias(client, registry.CHAMPION)
    model = champion.model_hash(_lock(start), f"out/{FINAL}")
    if holder and registry.tag(holder, "model_md5") == model:
        return _record(start, holder)
    gate = load_params(os.path.relpath(start.tree / "params.yaml")).gate
    new = Model.measured(start.tree, gate)
    old = _champion(start, holder, gate) if holder else None
    decision = decide(old.scores if old else None, new.scores, gate, start.intake.sources)
    version = _register(start, model, new, decision)
    if decision.promote and "rolled_back" in version.tags:
        reason = f"version {version.number} is this model, and it was rolled back (its tag rolled_back says so)"
        decision = replace(decision, promote=False, reason=reason)
    _publish(version, decision, old, new)
    if decision.promote:
        return _promote(start, holder, version, old, new, decision)
    return _refuse(start, holder, version, decision)


def _champion(start: Start, holder: registry.Version, gate: Gate) -> Model:
    """Return the champion's side, measured again if it must be."""
    candidate = git.commit(start.tree, start.base, "retrain: the candidate")
    commit, key = registry.tag(holder, "commit"), f"{flow_run.name}-{flow_run.id}"
    tree = workspace.retrain_folder(start.repository) / "champion"
    with lifeline() as held, watching(alerts.this_run(), MEASURE, start.repository, key, _say) as emit:
        try:
            champion.measure_champion(
                start.repository, tree, candidate, commit, emit, {"VERDICT_PIPELINE": key}, held.end
            )
            return Model.measured(tree, gate)
        except UserError:
            if held.interrupted.is_set():
                raise KeyboardInterrupt from None
            raise
        finally:
            git.remove_worktree(start.repository, tree)


def _record(start: Start, holder: registry.Version) -> State:
    """Commit the inputs of a model that is the champion already, if they are new."""
    if not git.staged(start.tree):
        return Completed(name="NothingNew", message=texts.NOTHING_NEW)
    workspace.push_results(start.tree)
    title = f"retrain: the same model, version {holder.number}, from new inputs"
    message = texts.promotion_message(title, start.intake.lines, {}, {}, holder.number)
    commit = git.commit(start.tree, start.base, message)
    moved = promotion.move(start, commit, holder.number, {})
    return Completed(name="Recorded", message=f"The same model as the champion, version {holder.number}; {moved}.")


def _register(start: Start, model: str, new: Model, decision: Decision) -> registry.Version:
    """Register the new model as challenger, with its figures and the hashes of its data."""
    tags = {"model_md5": model, "gate": decision.reason} | {k: f"{v:.6g}" for k, v in new.figures.items()}
    data = {path: md5 for path, md5 in champion.inputs(_lock(start)).items() if not is_code(path)}
    tags |= {f"dvc.{path}": md5 for path, md5 in data.items()}
    with registry.registry_client(locations.home(start.repository)) as client:
        return registry.register_version(client, f"dvc://out/{FINAL}?md5={model}", tags)


def _publish(version: registry.Version, decision: Decision, old: Model | None, new: Model) -> None:
    """Show the gate's decision as a Prefect artifact."""
    title = f"**{_outcome(decision)}**: version {version.number} of {registry.name()}, {decision.figures}"
    tables = [texts.gate_table(decision), texts.comparison(old.figures if old else {}, new.figures)]
    text = "\n\n".join([title, decision.reason, *filter(None, tables)])
    create_markdown_artifact(key="gate", markdown=text, description="The new model against the champion")


def _outcome(decision: Decision) -> str:
    return "Promoted" if decision.promote else "Refused"


def _refuse(start: Start, holder: registry.Version | None, version: registry.Version, decision: Decision) -> State:
    """Leave the champion in place, and move its files out of the inbox, so that no later retrain tries them again."""
    kept = f"version {holder.number} stays champion" if holder else "there is no champion"
    message = f"Refused: {decision.reason}. Version {version.number} is challenger, {kept}."
    for arrival in start.intake.arrivals:
        if arrival.inbox:
            _say(f"refused: {arrival.refuse(message)}")
    alerts.send(alerts.this_run(), "refused", message)
    return Completed(name="Refused", message=message)


def _promote(
    start: Start, holder: registry.Version | None, version: registry.Version, old: Model | None, new: Model,
    decision: Decision,
) -> State:  # fmt: skip
    """Make the new model champion: push its results, commit, and move branch and alias."""
    workspace.push_results(start.tree)  # before the commit that points to it
    title = f"retrain: {decision.figures}, version {version.number}"
    before = old.figures if old else {}
    message = texts.promotion_message(
        title, start.intake.lines, before, new.figures, version.number, decision.reason
    )  # fmt: skip
    commit = git.commit(start.tree, start.base, message)
    previous = holder.number if holder else "none"
    moved = promotion.move(start, commit, version.number, {version.number: {"commit": commit, "previous": previous}})
    return Completed(name="Promoted", message=f"Promoted: version {version.number}, {decision.figures}; {moved}.")


def _lock(start: Start) -> str:
    return (start.tree / "dvc.lock").read_text(encoding="utf-8")


def _say(text: str) -> None:
    for line in text.splitlines():
        get_run_logger().info("%s", line, extra={"stage": "retrain"})
