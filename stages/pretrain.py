"""DVC stage `pretrain`: out/size/plan.json + out/pack -> out/pretrain, a Llama in Hugging Face format.

It starts from a new model, or from the one in the folder `init` (continual pretraining).
"""

from stages.contract import Run, run_stage
from stages.scaling.plan import Plan


def main(run: Run) -> None:
    """Pretrain by the plan and report the losses."""
    from stages.trainer.loop.history import final, write_curve, write_points
    from stages.trainer.loop.pretraining import load_packed, pretrain_stage

    plan = Plan.read()
    if history := pretrain_stage(run, plan, *load_packed()):
        write_curve(run.reports / "loss.csv", history, ["loss", "learning_rate", "grad_norm"])
        write_points(run.reports / "validation.csv", history, "eval_loss")
        run.report({
            "steps": plan.steps, "tokens": plan.tokens, "parameters": plan.parameters,
            "train_loss": final(history, "loss"), "validation_loss": final(history, "eval_loss", 0),
        }, headline={"validation_loss": "validation_loss"})  # fmt: skip


if __name__ == "__main__":
    run_stage("pretrain", main)
