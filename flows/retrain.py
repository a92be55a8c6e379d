"""Retrain on new data: the command, and the flow for a deployment.

    python -m flows.retrain [--data [SOURCE=]FILE ...] [--inbox FOLDER]

A deployment's entrypoint is ``flows/retrain.py:retrain``; its working directory is the repository.
"""

if __name__ == "__main__":  # before Prefect, whose import takes seconds
    from flows.interrupts import run_command

    run_command("flows.cli", "retrain_main")

from flows.retraining.retrain_flow import retrain

__all__ = ["retrain"]
