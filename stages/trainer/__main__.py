"""Preflight of pretraining: `python -m stages.trainer` prints the recipe, its reasons, whether it fits and how long
it takes. Reads params.yaml and, where it exists, out/size/plan.json; trains a few steps on random tokens."""

import json
import sys
from pathlib import Path

from stages.contract import UserError
from stages.contract.params import load_params
from stages.contract.progress import clock


def main() -> int:
    if len(sys.argv) > 1:
        print(__doc__)
        return 0 if sys.argv[1] in ("-h", "--help") else 2
    try:
        _preflight()
    except UserError as e:
        print(e, file=sys.stderr)
        return 1
    return 0


def _preflight() -> None:
    params = load_params()
    plan, one_document_rows = _plan(params)
    from stages.scaling.shapes import Shape
    from stages.trainer import hardware, preflight, recipe

    row_tokens = params.pack.row_tokens
    shape, machine = Shape.of(plan["model"]), hardware.detect()
    chosen = recipe.resolve(machine, shape, plan["batch_rows"], row_tokens, params.trainer, one_document_rows)
    print(f"{shape.parameters:,} parameters, {plan['steps']:,} steps of {plan['batch_rows'] * row_tokens:,} tokens")
    print(chosen.table(), flush=True)
    if chosen.sharding not in ("none", "ddp"):
        print("Speed is measured on one process only; the table above is the plan.")
        return
    measured = preflight.measure(shape, chosen, row_tokens)
    rate = measured.tokens_per_second(chosen, row_tokens)
    seconds = plan["steps"] * plan["batch_rows"] * row_tokens / rate
    print(f"  first step     {measured.first_step:.1f} s")
    print(f"  expected       {rate:,.0f} tokens/s, {clock(seconds)} for {plan['steps']:,} steps")
    if peak := machine.peak_flops:
        mfu = rate / chosen.processes * shape.flops_per_token(row_tokens) / peak
        print(f"  MFU            {mfu:.1%} of {peak / 1e12:,.0f} TFLOP/s in bf16, attention counted in full")
    if measured.peak:
        print(f"  memory         {measured.peak / 2**30:.2f} GiB at the peak")


def _plan(params) -> tuple[dict, bool]:
    """(out/size/plan.json, whether rows are single documents), or what the budget alone would make of it."""
    path = Path("out/size/plan.json")
    if path.exists():
        from stages.corpus.packing import load_rows
        from stages.trainer.rows import PackedRows

        parts = [PackedRows(load_rows(Path("out/pack") / part)) for part in ("train", "validation")]
        return json.loads(path.read_text()), all(part.one_document for part in parts)
    from stages.size import plan_of

    print("out/size/plan.json is not there yet: planned from budget_flops as if there were data enough")
    return plan_of(params, vocab_size=params.tokenizer.vocab_size, unique_tokens=float("inf")), False


if __name__ == "__main__":
    sys.exit(main())
