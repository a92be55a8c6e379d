"""DVC stage `pretrain`: out/size/plan.json + out/pack -> out/pretrain, a Llama in Hugging Face format.

It starts from a new model, or from the one in the folder `init` (continual pretraining).
"""

from pathlib import Path
from typing import TYPE_CHECKING

from stages.contract import Run, run_stage
from stages.scaling.plan import Plan

if TYPE_CHECKING:
    from stages.trainer.loop.rows import PackedRows

VALIDATION_ROWS = 64


def main(run: Run) -> None:
    """Pretrain by the plan and report the losses."""
    from stages.trainer.loop.history import final, write_curve, write_points
    from stages.trainer.loop.pretraining import pretrain_stage

    plan = Plan.read()
    if history := pretrain_stage(run, plan, _rows("train"), _rows("validation", VALIDATION_ROWS)):
        write_curve(run.reports / "loss.csv", history, ["loss", "learning_rate", "grad_norm"])
        write_points(run.reports / "validation.csv", history, "eval_loss")
        run.report({
            "steps": plan.steps, "tokens": plan.tokens, "parameters": plan.parameters,
            "train_loss": final(history, "loss"), "validation_loss": final(history, "eval_loss", 0),
        }, headline={"validation_loss": "validation_loss"})  # fmt: skip


def _rows(part: str, limit: int | None = None) -> "PackedRows":
    from stages.corpus.tokens.packed_rows import load_rows
    from stages.trainer.loop.rows import PackedRows

    return PackedRows(load_rows(Path("out/pack") / part), limit=limit)


if __name__ == "__main__":
    run_stage("pretrain", main)
