"""Sweep over params: the command, and the flow for a deployment.

    python -m flows.sweep --metric STAGE.KEY -S KEY=LOW..HIGH[:log] -S KEY=ONE,TWO ... [--trials N] [--jobs N]

A deployment's entrypoint is ``flows/sweep.py:sweep``; its working directory is the repository.
"""

if __name__ == "__main__":  # before Prefect, whose import takes seconds
    from flows.interrupts import run_command

    run_command("flows.cli", "sweep_main")

from flows.sweeps.sweep_flow import sweep

__all__ = ["sweep"]
