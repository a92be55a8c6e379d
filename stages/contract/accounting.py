"""Account for the records of a source: how many were read, used, rejected and dropped, and why."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from stages.contract.errors import UserError

Figures = dict[str, int | dict[str, int]]

SHOWN = 3  # reasons named on the terminal


@dataclass(frozen=True)
class Account:
    """The records of one source.

    ``rejected`` counts input that cannot be used, ``dropped`` input that a rule removes; both by reason.
    """

    source: str  # key in params.yaml: data.sft
    unit: str  # plural: conversations
    read: int
    used: int
    rejected: Mapping[str, int] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)
    hint: str = ""  # how rejected records could be used

    def line(self) -> str:
        """Return "1,357 conversations read, 904 used, 453 rejected (448 no assistant turn, 5 not JSON)"."""
        words = [f"{self.read:,} {self.unit} read", f"{self.used:,} used"]
        shown = set(sorted(_reasons(self), key=lambda reason: -reason[0])[:SHOWN])
        for verb, reasons in (("rejected", self.rejected), ("dropped", self.dropped)):
            if total := sum(reasons.values()):
                named = [f"{n:,} {reason}" for reason, n in reasons.items() if (n, verb, reason) in shown]
                words.append(f"{total:,} {verb}" + (f" ({', '.join(named)})" if named else ""))
        return ", ".join(words)

    def figures(self) -> Figures:
        """Return the account as metrics: ``read``, ``used``, and ``rejected`` and ``dropped`` by reason."""
        return {
            "read": self.read,
            "used": self.used,
            "rejected": {"total": sum(self.rejected.values()), **self.rejected},
            "dropped": {"total": sum(self.dropped.values()), **self.dropped},
        }

    def check(self, max_rejected: float) -> None:
        """Raise UserError if more than the share ``max_rejected`` of the records was rejected."""
        rejected = sum(self.rejected.values())
        if self.read and rejected / self.read > max_rejected:
            raise UserError(
                f"{self.source}: {self.line()}. That is {rejected / self.read:.1%} rejected, above max_rejected "
                f"({max_rejected:.1%}). {self.hint or 'Repair the data, or raise max_rejected in params.yaml.'}"
            )


def _reasons(account: Account) -> list[tuple[int, str, str]]:
    return [
        (n, verb, reason)
        for verb, reasons in (("rejected", account.rejected), ("dropped", account.dropped))
        for reason, n in reasons.items()
    ]
