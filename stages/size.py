"""DVC stage `size`: compute budget and packed data -> out/size/plan.json, the model's shape and its schedule.

Reads out/pack (rows), out/tokenizer (vocabulary) and, where there is one, the shape of the model in `init`. The
plan holds nothing that depends on the machine.
"""

import csv
import json
from pathlib import Path

from stages.contract import Run, UserError, run_stage
from stages.contract.params import Params
from stages.corpus.packing import load_rows
from stages.scaling import laws
from stages.scaling.shapes import Shape, default_head_dim, divisible, nearest


def main(run: Run) -> None:
    unique_tokens = int(load_rows(Path("out/pack/train")).filled.sum())
    plan = plan_of(run.params, _vocab_size(Path("out/tokenizer")), unique_tokens)
    (run.out / "plan.json").write_text(json.dumps(plan, indent=2, sort_keys=True) + "\n")
    _isoflop(run.reports / "isoflop.csv", run.params.budget_flops, Shape.of(plan["model"]), unique_tokens)
    figures = ("parameters", "matmul_parameters", "tokens", "epochs", "steps", "flops")
    run.report({key: plan[key] for key in figures}, headline=("parameters", "tokens"))
    _print(plan)


def plan_of(params: Params, vocab_size: int, unique_tokens: float) -> dict:
    """The plan for ``unique_tokens`` tokens of data and a vocabulary of ``vocab_size``.

    Raises:
        UserError: the budget does not pay for one step, or the model in `init` does not know so long rows.
    """
    parameters, _ = laws.split_budget(
        params.budget_flops, params.size.tokens_per_parameter, params.size.max_epochs * unique_tokens
    )
    head_dim = default_head_dim(parameters) if params.size.head_dim == "auto" else params.size.head_dim
    given = Path(params.init) / "config.json"
    if given.exists():
        shape = _given(given, params.pack.row_tokens)
    else:
        shape = nearest(parameters, vocab_size, head_dim, params.pack.row_tokens)
    return _schedule(params, shape, unique_tokens)


def _given(path: Path, row_tokens: int) -> Shape:
    """The shape of the model to go on training."""
    try:
        config = json.loads(path.read_text())
        shape = Shape.of(config)
    except (ValueError, KeyError) as e:
        raise UserError(f"{path} does not describe a model: {type(e).__name__} {e}.") from None
    if "quantization_config" in config:
        raise UserError(f"the model in {path.parent} is quantized; weights to train are fp32, bf16 or fp16.")
    if row_tokens > shape.max_position_embeddings:
        raise UserError(
            f"pack.row_tokens is {row_tokens:,}, but the model in {path.parent} knows positions up to "
            f"{shape.max_position_embeddings:,}."
        )
    window = config.get("sliding_window")
    if window and row_tokens > window and config.get("use_sliding_window", True):
        raise UserError(
            f"pack.row_tokens is {row_tokens:,}, but the model in {path.parent} attends to {window:,} tokens at a time "
            f"(sliding_window), which the trainer does not mask. Set pack.row_tokens to {window} or less."
        )
    return shape


def _vocab_size(tokenizer: Path) -> int:
    from tokenizers import Tokenizer

    size = Tokenizer.from_file(str(tokenizer / "tokenizer.json")).get_vocab_size()
    return -(-size // 64) * 64  # rows of the embedding beyond the vocabulary are never used; kernels want 64


def _schedule(params: Params, shape: Shape, unique_tokens: float) -> dict:
    size, budget, row = params.size, params.budget_flops, params.pack.row_tokens
    # The nearest shape is seldom exactly N: tokens are what the budget leaves for this one.
    tokens = min(budget / (6 * shape.matmul_parameters), size.max_epochs * unique_tokens)
    wanted = laws.batch_tokens(budget) if size.batch_tokens == "auto" else size.batch_tokens
    batch_rows = divisible(wanted / row)
    steps = int(tokens / (batch_rows * row))
    if steps < 1:
        raise UserError(
            f"budget_flops {budget:.3g} pays for {tokens:,.0f} tokens, less than one step of {batch_rows * row:,} "
            "tokens. Raise budget_flops, or lower size.batch_tokens or pack.row_tokens."
        )
    tokens = steps * batch_rows * row
    rate = laws.learning_rate(budget) if size.learning_rate == "auto" else size.learning_rate
    return {
        "model": shape.config(),
        "parameters": shape.parameters,
        "matmul_parameters": shape.matmul_parameters,
        "tokens": tokens,
        "unique_tokens": unique_tokens,
        "epochs": round(tokens / unique_tokens, 4),
        "steps": steps,
        "batch_rows": batch_rows,
        "batch_tokens": batch_rows * row,
        "learning_rate": float(f"{rate:.4g}"),
        "flops": tokens * 6 * shape.matmul_parameters,
        "flops_per_token": shape.flops_per_token(row),
    }


def _isoflop(path: Path, flops: float, chosen: Shape, unique_tokens: int) -> None:
    """Predicted loss of every split of the budget between parameters and tokens, and of the chosen one."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["parameters", "predicted_loss", "split"])
        for i in range(-12, 13):
            parameters = chosen.matmul_parameters * 10 ** (i / 12)
            loss = laws.predicted_loss(parameters, flops / (6 * parameters), unique_tokens)
            rows.writerow([round(parameters), f"{loss:.5f}", "chosen" if i == 0 else "same budget"])


def _print(plan: dict) -> None:
    model = plan["model"]
    print(
        f"{plan['parameters']:,} parameters: {model['num_hidden_layers']} layers of {model['hidden_size']}, "
        f"{model['num_attention_heads']} heads; {plan['tokens']:,} tokens ({plan['epochs']:.2f} epochs) in "
        f"{plan['steps']:,} steps of {plan['batch_tokens']:,}, learning rate {plan['learning_rate']}"
    )


if __name__ == "__main__":
    run_stage("size", main)
