"""Run the pipeline: the command, and the flow for a deployment.

    python -m flows.pipeline [STAGE ...] [--force STAGE ...] [-S KEY=VALUE ...]

A deployment's entrypoint is ``flows/pipeline.py:pipeline``; its working directory is the repository.
"""

if __name__ == "__main__":  # before Prefect, whose import takes seconds
    from flows.interrupts import run_command

    run_command("flows.cli", "main")

from flows.execution.pipeline_flow import pipeline

__all__ = ["pipeline"]
