"""Print progress of long work as plain lines, which read the same in a terminal, in DVC and in Prefect's log."""

import time


class Progress:
    """``p = Progress("dedup", total=n, unit="documents")``, then ``p.step(k)`` after every k of them.

    Prints at most one line every ``every`` seconds: done, rate and remaining time. ``done`` counts the work of an
    earlier run, which is no part of the rate.
    """

    def __init__(self, label: str, total: float, unit: str, done: float = 0.0, every: float = 5.0) -> None:
        self.label, self.total, self.unit, self.every = label, total, unit, every
        self.done = self.done_before = done
        self.started = self.printed = time.monotonic()

    def skip(self, n: float) -> None:
        """Count ``n`` more as done by an earlier run."""
        self.done += n
        self.done_before += n

    def step(self, n: float = 1, note: str = "") -> None:
        self.done += n
        now = time.monotonic()
        if now - self.printed < self.every or self.done == self.done_before:
            return
        self.printed = now
        rate = (self.done - self.done_before) / (now - self.started)
        print(
            f"{self.label}: {self.done:,.0f}/{self.total:,.0f} {self.unit}, {rate:,.3g}/s, "
            f"{clock((self.total - self.done) / rate)} left{', ' + note if note else ''}",
            flush=True,
        )


def clock(seconds: float) -> str:
    """Return ``seconds`` as 42s, 3m05s or 2h07m."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s" if minutes else f"{seconds}s"
