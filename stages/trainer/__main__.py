"""Preflight of pretraining: print the recipe with its reasons, whether it fits, and how long the training takes.

    python -m stages.trainer

Reads params.yaml and, where it exists, out/size/plan.json; trains a few steps on random tokens.
"""

import sys

from stages.contract import UserError
from stages.contract.params import Params, load_params
from stages.contract.progress import clock
from stages.scaling.budget import plan_of
from stages.scaling.plan import PLAN, Plan


def main() -> int:
    """Run the preflight. Exit code: 0 done, 1 refused."""
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
    from stages.trainer.loop import preflight
    from stages.trainer.optim import optimizers
    from stages.trainer.plan import costs, hardware, recipe

    if plan.mup_base_width:
        optimizers.width_power(params.trainer.optimizer)
    row_tokens = params.pack.row_tokens
    shape, machine = Shape.of(plan.model), hardware.detect_hardware()
    chosen = recipe.resolve(machine, shape, plan.batch_rows, row_tokens, params.trainer, one_document_rows)
    print(f"{shape.parameters:,} parameters, {plan.steps:,} steps of {plan.batch_rows * row_tokens:,} tokens")
    print(chosen.table(), flush=True)
    flops, gpus = plan.steps * plan.batch_rows * row_tokens * shape.flops_per_token(row_tokens), costs.read_gpus()
    if chosen.sharding not in ("none", "ddp"):
        print("Speed is measured on one process only; the table above is the plan.")
        print(costs.cost_table(flops, gpus, None))
        return
    measured = preflight.measure_steps(shape, chosen, row_tokens)
    rate = measured.tokens_per_second(chosen, row_tokens)
    seconds = plan.steps * plan.batch_rows * row_tokens / rate
    print(f"  first step     {measured.first_step:.1f} s")
    print(f"  expected       {rate:,.0f} tokens/s, {clock(seconds)} for {plan.steps:,} steps")
    mfu = None
    if peak := machine.peak_flops:
        mfu = rate / chosen.processes * shape.flops_per_token(row_tokens) / peak
        print(f"  MFU            {mfu:.1%} of {peak / 1e12:,.0f} TFLOP/s in bf16, attention counted in full")
    if measured.peak:
        print(f"  memory         {measured.peak / 2**30:.2f} GiB at the peak")
    print(costs.cost_table(flops, gpus, mfu))


def _plan(params: Params) -> tuple[Plan, bool]:
    """Return out/size/plan.json, or a plan by the budget alone; and whether every row is a single document."""
    if PLAN.exists():
        from stages.trainer.loop.pretraining import load_packed

        return Plan.read(), all(rows.one_document for rows in load_packed())
    print(f"{PLAN} is not there yet: planned from budget_flops as if there were data enough")
    return plan_of(params, vocab_size=params.tokenizer.vocab_size, unique_tokens=float("inf")), False


if __name__ == "__main__":
    sys.exit(main())
