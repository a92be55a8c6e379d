"""The values that flows pass on: a stage of the plan, and the outcome of its execution."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """A stage of dvc.yaml and the reasons why it must run."""

    name: str  # its address for `dvc repro` at the repository's root
    upstream: tuple[str, ...]  # the stages whose outs it reads
    reasons: tuple[str, ...]  # none: its recorded result is still valid
    force: bool = False  # run even if DVC finds nothing changed
    resource: str = "cpu"  # from its `meta:`, like the next two
    retries: int = 0  # after a preemption
    timeout: float | None = None  # seconds

    @property
    def fresh(self) -> bool:
        return not self.reasons


@dataclass(frozen=True)
class Outcome:
    """The end of a stage's execution.

    ``state`` names its Prefect state: Completed, Cached, Failed, Preempted, TimedOut or Cancelled.
    """

    state: str
    message: str = ""
    seconds: float = 0.0
    tail: tuple[str, ...] = ()  # the stage's last lines
