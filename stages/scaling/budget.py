"""From a compute budget and data to the plan of a pretraining."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

from stages.contract.errors import UserError
from stages.contract.params import MOST_FLOPS, Params, Rung
from stages.scaling import laws
from stages.scaling.configs import given_shape
from stages.scaling.mup import BASE
from stages.scaling.plan import Plan
from stages.scaling.shapes import Shape, default_head_dim, divisible, nearest

MOST_ABOVE = 2.0  # times the parameters of the largest shape
# Times the parameters that suit the data. Parameters beyond them lose their worth with a decay of 5 times (Muennighoff
# et al. 2023, R*_N), so that a hundred times are worth no more than thirty.
MOST_EXCESS = 100.0
FEWEST_VOCABULARY = 320  # of any tokenizer: bytes and special tokens
FEWEST_ROW_TOKENS = 16  # that pack.row_tokens may be
FEW_TOKENS, LARGE_BUDGET = 10, 1e16  # tokens a parameter, FLOPs: below and above, a smaller model has a lower loss


class Impossible(Exception):
    """No plan for this budget; there is one for a larger or a smaller one."""


class TooSmall(Impossible):
    """The budget pays for less than one step."""


class TooLarge(Impossible):
    """The budget asks for more than the largest shape."""


def plan_of(params: Params, vocab_size: int, unique_tokens: float) -> Plan:
    """Return the plan for ``unique_tokens`` tokens of data and a vocabulary of ``vocab_size`` ids.

    Raises:
        UserError: the budget pays for less than one step, or asks for more parameters than any shape has; the data are
            less than a step; the model in `init` takes no rows of this length. It names the nearest plan.
    """
    try:
        return _plan(params, vocab_size, unique_tokens)
    except Impossible as e:
        raise UserError(f"{e} {_remedy(params, vocab_size, unique_tokens, isinstance(e, TooSmall))}") from None


def rung_plan(params: Params, rung: Rung, vocab_size: int, unique_tokens: float) -> Plan:
    """Return the plan of a ladder's rung: as `plan_of`, with its share of the budget and its tokens a parameter.

    A batch or rate that `sizing` states is the target's; a rung's follows from it by Step-law, with the square root of
    the budget for parameters and tokens. With muP a stated rate holds for all.

    Raises:
        UserError: the share of the budget has no plan. It names the nearest share that has one.
    """
    sizing = params.sizing
    update: dict[str, object] = {"tokens_per_parameter": rung.tokens_per_parameter, "rungs": []}
    if sizing.batch_tokens != "auto":
        update["batch_tokens"] = max(1, round(sizing.batch_tokens * rung.share ** (laws.BATCH_TOKENS / 2)))
    if sizing.learning_rate != "auto" and sizing.parametrization == "standard":
        update["learning_rate"] = sizing.learning_rate * rung.share ** (sum(laws.RATES) / 2)
    flops = rung.share * params.budget_flops
    changed = params.model_copy(update={"budget_flops": flops, "sizing": sizing.model_copy(update=update)})
    try:
        return _plan(changed, vocab_size, unique_tokens)
    except Impossible as e:
        nearest = _nearest_plan(changed, vocab_size, unique_tokens, isinstance(e, TooSmall))
        word = "Raise" if isinstance(e, TooSmall) else "Lower"
        remedy = f"{word} it to {nearest[0] / params.budget_flops:.3g}" if nearest else f"{word} it"
        reason = str(e).replace("budget_flops ", "a budget of ").rstrip(".")
        raise UserError(f"sizing.rungs: share {rung.share:g}: {reason}. {remedy}, or remove the rung.") from None


def check_budget(params: Params) -> None:
    """Raise UserError if no corpus and no tokenizer make `budget_flops` or a rung's share possible for a new model."""
    if has_model(params):
        _refuse_mup(params)
    else:
        plan_of(params, FEWEST_VOCABULARY, math.inf)
        for rung in params.sizing.rungs:
            if rung.share:
                rung_plan(params, rung, FEWEST_VOCABULARY, math.inf)


def has_model(params: Params) -> bool:
    """Whether the folder `init` has a model to continue, whose shape the budget does not decide."""
    return (Path(params.init) / "config.json").exists()


def warning_of(params: Params, plan: Plan) -> str:
    """Return a line on a plan that is possible and wasteful, or nothing."""
    ratio = plan.tokens / plan.matmul_parameters
    if plan.flops <= LARGE_BUDGET or ratio >= FEW_TOKENS or has_model(params):
        return ""
    short = plan.epochs > 0.99 * params.sizing.max_epochs
    remedy = "Add data, or lower budget_flops" if short else "Raise sizing.tokens_per_parameter"
    return (
        f"warning: {ratio:.2g} tokens a parameter; with about 20, a smaller model has a lower loss for the same budget "
        f"(Hoffmann et al. 2022). {remedy}."
    )


def _plan(params: Params, vocab_size: int, unique_tokens: float) -> Plan:
    if params.sizing.max_epochs * unique_tokens < params.pack.row_tokens:
        raise _too_little(params, params.pack.row_tokens, unique_tokens)
    if has_model(params):
        _refuse_mup(params)
        shape = given_shape(Path(params.init), params.pack.row_tokens)
        if vocab_size > shape.vocab_size:  # new tokens: see models.load_initial
            shape = replace(shape, vocab_size=_rows(vocab_size))
        return _schedule(params, shape, unique_tokens)
    sizing = params.sizing
    parameters, tokens = laws.split_budget(
        params.budget_flops, sizing.tokens_per_parameter, sizing.max_epochs * unique_tokens
    )
    head_dim = default_head_dim(parameters) if sizing.head_dim == "auto" else sizing.head_dim
    shape = nearest(parameters, _rows(vocab_size), head_dim, params.pack.row_tokens)
    if parameters > MOST_ABOVE * shape.matmul_parameters:
        raise TooLarge(
            f"{_too_large(params, unique_tokens)}: it asks for {parameters:.3g} parameters, and the largest shape has "
            f"{shape.matmul_parameters:.3g}."
        )
    if parameters * sizing.tokens_per_parameter > MOST_EXCESS * tokens:
        raise TooLarge(
            f"{_too_large(params, unique_tokens)}: it asks for {parameters:.3g} parameters, more than {MOST_EXCESS:g} "
            f"times what sizing.tokens_per_parameter ({sizing.tokens_per_parameter:g}) wants for the data."
        )
    return _schedule(params, shape, unique_tokens)


def _refuse_mup(params: Params) -> None:
    """Raise UserError if muP is asked for and `init` has a model, whose weights have their sizes."""
    if params.sizing.parametrization == "mup":
        raise UserError(
            f"sizing.parametrization: mup sets the sizes of a new model's weights, and {params.init} holds a trained "
            "model. Use standard."
        )


def _too_large(params: Params, unique_tokens: float) -> str:
    reason = "is too large for any model"
    if math.isfinite(unique_tokens):
        reason = f"is too large for the data ({unique_tokens:,.0f} tokens, at most {params.sizing.max_epochs:g} times)"
    return f"budget_flops {params.budget_flops:.3g} {reason}"


def _remedy(params: Params, vocab_size: int, unique_tokens: float, raised: bool) -> str:
    """Return advice on an impossible budget: the nearest possible one and its plan."""
    nearest = _nearest_plan(params, vocab_size, unique_tokens, raised)
    what = "budget_flops"
    if nearest:
        flops, plan = nearest
        sizes = f"{plan.parameters:,} parameters, {plan.tokens:,} tokens"
        what += f" to {flops:.2g} ({sizes}) or {'more' if raised else 'less'}"
    if raised:
        return f"Raise {what}, or lower sizing.batch_tokens or pack.row_tokens."
    if math.isinf(unique_tokens):
        return f"Lower {what}."
    suits = 6 * (params.sizing.max_epochs * unique_tokens) ** 2 / params.sizing.tokens_per_parameter
    wanted = nearest and suits < nearest[0] and _possible(params, vocab_size, unique_tokens, suits)
    return f"Add data, or lower {what}{f'; {suits:.2g} suits the data' if wanted else ''}."


def _possible(params: Params, vocab_size: int, unique_tokens: float, flops: float) -> Plan | None:
    try:
        return _plan(params.model_copy(update={"budget_flops": flops}), vocab_size, unique_tokens)
    except (UserError, Impossible):
        return None


def _nearest_plan(params: Params, vocab_size: int, unique_tokens: float, raised: bool) -> tuple[float, Plan] | None:
    """Return the budget of two digits nearest to budget_flops that has a plan, and its plan; None: there is none."""
    plan = partial(_possible, params, vocab_size, unique_tokens)
    top = math.log10(MOST_FLOPS)
    no, step = min(max(math.log10(params.budget_flops), 0.0), top), 0.5 if raised else -0.5
    while not plan(10 ** (no + step)):  # by half decades, then by halves
        no += step
        if not 0 < no < top:
            return None
    yes = no + step
    while abs(yes - no) > 0.004:  # less than the second digit
        middle = (no + yes) / 2
        no, yes = (no, middle) if plan(10**middle) else (middle, yes)
    unit = 10.0 ** (math.floor(yes) - 1)
    rounded = unit * (math.ceil(10**yes / unit) if raised else math.floor(10**yes / unit))
    possible = plan(rounded)
    return (rounded, possible) if possible else None


def _rows(vocab_size: int) -> int:
    """Return the rows of an embedding: kernels want a multiple of 64, and rows beyond the vocabulary are never used."""
    return -(-vocab_size // 64) * 64


def _schedule(params: Params, shape: Shape, unique_tokens: float) -> Plan:
    sizing, budget, row = params.sizing, params.budget_flops, params.pack.row_tokens
    # The nearest shape seldom has exactly N parameters, so its tokens follow from the budget.
    tokens = min(budget / (6 * shape.matmul_parameters), sizing.max_epochs * unique_tokens)
    wanted = laws.batch_tokens(tokens) if sizing.batch_tokens == "auto" else sizing.batch_tokens
    batch_rows = divisible(wanted / row)
    steps = int(tokens / (batch_rows * row))
    if steps < 1:
        raise _no_step(params, tokens, batch_rows * row, unique_tokens)
    tokens = steps * batch_rows * row
    rate, mup = sizing.learning_rate, sizing.parametrization == "mup"
    if rate == "auto":
        sized = BASE if mup else shape
        rate = laws.learning_rate(sized.block_parameters, tokens, batch_rows * row)
    return Plan(
        model=shape.config(),
        parameters=shape.parameters,
        matmul_parameters=shape.matmul_parameters,
        tokens=tokens,
        unique_tokens=unique_tokens,
        epochs=round(tokens / unique_tokens, 4),
        steps=steps,
        batch_rows=batch_rows,
        batch_tokens=batch_rows * row,
        learning_rate=float(f"{rate:.4g}"),
        flops=tokens * 6 * shape.matmul_parameters,
        flops_per_token=shape.flops_per_token(row),
        mup_base_width=BASE.hidden_size if mup else None,
    )


def _no_step(params: Params, tokens: float, batch_tokens: int, unique_tokens: float) -> UserError | Impossible:
    """Return why the schedule has no step: the budget pays for too few tokens, or the data have too few."""
    if tokens < params.sizing.max_epochs * unique_tokens:
        return TooSmall(
            f"budget_flops {params.budget_flops:.3g} pays for {tokens:,.0f} tokens, less than one step of "
            f"{batch_tokens:,} tokens."
        )
    return _too_little(params, batch_tokens, unique_tokens)


def _too_little(params: Params, batch_tokens: int, unique_tokens: float) -> UserError:
    tokens = int(params.sizing.max_epochs * unique_tokens)
    if batch_tokens > params.pack.row_tokens:
        shorter = f"lower sizing.batch_tokens to {tokens:,} or less"
    else:
        shorter = (
            f"lower pack.row_tokens to {tokens:,} or less" if tokens >= FEWEST_ROW_TOKENS else "raise sizing.max_epochs"
        )
    return UserError(
        f"the data have {unique_tokens:,.0f} tokens, at most {params.sizing.max_epochs:g} times, less than one step of "
        f"{batch_tokens:,} tokens. Add data, or {shorter}."
    )
