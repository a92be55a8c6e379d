"""Likelihood displacement: preference training that makes the chosen answers less likely, too.

It happens if only the rejected ones fall faster (Pal et al. 2024, arXiv:2402.13228; Razin et al. 2024,
arXiv:2410.05779).
"""

MOST_FALL = 0.1  # nats a token: every token of the chosen answers a tenth less likely


def warning(drift: float, where: str) -> str | None:
    """Return a warning if the chosen answers' log-probability fell by more than MOST_FALL nats a token, else None.

    ``drift`` is its change against the reference; ``where`` names the pairs it was measured on.
    """
    if drift >= -MOST_FALL:
        return None
    return (
        f"Warning: the chosen answers of the {where} lost {-drift:.3f} nats a token against the reference (more than "
        f"{MOST_FALL}): the preferred answers became less likely, too. Lower dpo.learning_rate or raise dpo.beta."
    )
