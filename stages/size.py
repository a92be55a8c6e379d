"""DVC stage `size`: compute budget and packed data -> out/size/plan.json, the model's shape and its schedule.

It reads out/pack (rows), out/tokenizer (vocabulary) and the shape of the model in `init`, if there is one.
"""

import csv
from pathlib import Path

from stages.contract import Run, run_stage
from stages.corpus.tokens.packed_rows import load_rows
from stages.corpus.tokens.vocabulary import vocabulary_size
from stages.scaling import laws
from stages.scaling.budget import plan_of, warning_of
from stages.scaling.plan import PLAN, Plan
from stages.scaling.shapes import Shape


def main(run: Run) -> None:
    """Turn the compute budget into a plan: shape, tokens, batch and learning rate."""
    unique_tokens = int(load_rows(Path("out/pack/train")).filled.sum())
    plan = plan_of(run.params, vocabulary_size(Path("out/tokenizer")), unique_tokens)
    plan.write(run.out / PLAN.name)
    _isoflop(run.reports / "isoflop.csv", run.params.budget_flops, Shape.of(plan.model), unique_tokens)
    figures = ("parameters", "matmul_parameters", "tokens", "epochs", "steps", "flops")
    run.report({key: getattr(plan, key) for key in figures}, headline={"parameters": "parameters"})
    _print(plan)
    if warning := warning_of(run.params, plan):
        print(warning)


def _isoflop(path: Path, flops: float, chosen: Shape, unique_tokens: int) -> None:
    """Write the predicted loss of every split of the budget between parameters and tokens."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["parameters", "predicted_loss", "split"])
        for i in range(-12, 13):
            parameters = chosen.matmul_parameters * 10 ** (i / 12)
            loss = laws.predicted_loss(parameters, flops / (6 * parameters), unique_tokens)
            rows.writerow([round(parameters), f"{loss:.5f}", "chosen" if i == 0 else "same budget"])


def _print(plan: Plan) -> None:
    model = plan.model
    print(
        f"{plan.parameters:,} parameters: {model['num_hidden_layers']} layers of {model['hidden_size']}, "
        f"{model['num_attention_heads']} heads; {plan.tokens:,} tokens ({plan.epochs:.2f} epochs) in "
        f"{plan.steps:,} steps of {plan.batch_tokens:,}, learning rate {plan.learning_rate}"
        + (f" at a width of {plan.mup_base_width} (mup)" if plan.mup_base_width else "")
    )


if __name__ == "__main__":
    run_stage("size", main)
