"""DVC stage `pretrain`: out/size/plan.json + out/pack -> out/pretrain, a Llama in Hugging Face format.

It starts from a new model, or from the one in the folder `init` (continual pretraining).
"""

from stages.contract import Run, run_stage
from stages.scaling.plan import Plan


def main(run: Run) -> None:
    """Pretrain by the plan and report the losses."""
    from stages.trainer.loop.pretraining import pretrain_stage

    plan = Plan.read()
    if losses := pretrain_stage(run, plan, run.params.export.dtype):
        figures = {"steps": plan.steps, "tokens": plan.tokens, "parameters": plan.parameters}
        run.report(figures | losses, headline={"validation_loss": "validation_loss"})


if __name__ == "__main__":
    run_stage("pretrain", main)
