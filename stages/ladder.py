"""DVC stages `ladder@rungN`: a share of budget_flops + out/pack -> out/ladder/SHARE-RATIO/point.json, a measured loss.

    python -m stages.ladder SHARE TOKENS_PER_PARAMETER

Each row of `sizing.rungs` is one. It trains as `pretrain` does and keeps the point and the curves, but no model.
`forecast` predicts the loss of `pretrain` from the points.
"""

from pathlib import Path

from stages.contract import Run, run_stage
from stages.contract.params import Rung
from stages.corpus.tokens.packed_rows import load_rows
from stages.corpus.tokens.vocabulary import vocabulary_size
from stages.scaling.budget import has_model, rung_plan
from stages.scaling.ladder import Point


def main(run: Run) -> None:
    """Train the rung and write its point."""
    from stages.trainer.loop.pretraining import pretrain_stage

    rung = Rung(**run.arguments)
    if has_model(run.params) or not rung.share:
        why = f"{run.params.init} holds a model to continue" if rung.share else "its share is 0"
        print(f"not trained: {why}")
        run.report({})
        return
    unique_tokens = int(load_rows(Path("out/pack/train")).filled.sum())
    plan = rung_plan(run.params, rung, vocabulary_size(Path("out/tokenizer")), unique_tokens)
    if losses := pretrain_stage(run, plan, dtype=None):
        Point.of(rung, plan, losses["validation_loss"]).write(run.out)
        figures = ("parameters", "matmul_parameters", "tokens", "steps", "flops")
        run.report({name: getattr(plan, name) for name in figures} | losses)


if __name__ == "__main__":
    run_stage("ladder", main, ("share", "tokens_per_parameter"))
