"""Translate recipes of the alignment-handbook (SFT, DPO, ORPO; github.com/huggingface/alignment-handbook) to params."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from stages.contract.errors import UserError
from stages.contract.params import Dpo
from stages.recipes.settings import ACCUMULATION, BATCH, CHOICES, NOW, PREFERENCE, REASONS, SAME
from stages.trainer.model.lora import SCALE, TARGETS

Translation = tuple[dict[str, object], str]  # parameters by dotted name, and a note


@dataclass(frozen=True)
class RecipeLine:
    """A key of a recipe: the ``params`` it sets, by dotted name, and a note on them or on why there are none."""

    key: str
    value: object
    params: dict[str, object] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Recipe:
    """The settings of a recipe under their present names, its stage, GPUs and row length."""

    settings: dict[str, Any]
    stage: str  # sft or dpo
    gpus: int
    row_tokens: int


def objective(recipe: dict[str, Any], path: Path) -> str:
    """Return sft, dpo or orpo: by the folders of ``path``, as the handbook sorts its recipes, or by the keys."""
    for part in (*path.stem.split("_"), *reversed(path.parts)):  # the nearest folder
        if part in ("orpo", "dpo", "sft"):
            return part
    if not PREFERENCE & recipe.keys():
        return "sft"
    return "orpo" if "orpo" in str(recipe.get("output_dir", "")).lower() else "dpo"


def translate(recipe: dict[str, Any], kind: str, gpus: int, row_tokens: int) -> list[RecipeLine]:
    """Return a line for each key of ``recipe``, in its order, and for each default of the objective.

    Args:
        kind: of `objective`.
        gpus: that the recipe is written for.
        row_tokens: of params.yaml, for a recipe that does not say how long a row is.

    Raises:
        UserError: no key is known, a setting has both its names, or a value is impossible.
    """
    if not KNOWN & recipe.keys():
        raise UserError(f"none of its keys is one of a recipe: {', '.join(map(str, recipe)) or 'it is empty'}.")
    for old, new in NOW.items():
        if old in recipe and new in recipe:
            raise UserError(f"{old} and {new} are one setting, which is called {new} now. Keep one of them.")
    settings = {NOW.get(key, key): value for key, value in recipe.items()}
    renamed = Recipe(settings, "sft" if kind == "sft" else "dpo", gpus, row_tokens)
    lines = [RecipeLine(key, value, *_translation(key, value, renamed)) for key, value in recipe.items()]
    return [*lines, *_implied(settings, kind)]


def _implied(settings: dict[str, Any], kind: str) -> Iterator[RecipeLine]:
    if kind == "orpo":
        yield RecipeLine("(objective)", "orpo", {"dpo.loss": "orpo"}, "from the model of sft; beta is its lambda")
    elif kind == "dpo" and "loss_type" not in settings:
        yield RecipeLine("(loss_type)", "sigmoid", {"dpo.loss": "sigmoid"}, "DPOTrainer's default")


def _translation(key: str, value: object, recipe: Recipe) -> Translation:
    name = NOW.get(key, key)
    if value is None and name in KNOWN:  # TRL's "none": do not cut, no adapters
        return {}, "not set there, and as it is here"
    if name in SAME:
        param, note = SAME[name]
        return {param.format(stage=recipe.stage): value}, note
    if name in CHOICES:
        param, ours, note = CHOICES[name]
        choice = ours.get(value) if isinstance(value, str | bool) else None
        return ({}, f"{param} has none of that name") if choice is None else ({param: choice}, note)
    if name in REASONS:
        return {}, REASONS[name]
    if name in RULES:
        return RULES[name](key, value, recipe)
    return {}, "not a key that is known"


def _batch(key: str, value: object, recipe: Recipe) -> Translation:
    parts = (_whole(BATCH, value), _whole(ACCUMULATION, recipe.settings.get(ACCUMULATION, 1)), recipe.gpus)
    examples = parts[0] * parts[1] * parts[2]
    note = f"{' x '.join(map(str, parts))}: of a device, accumulated, GPUs (--gpus)"
    if recipe.stage == "dpo":
        return {"dpo.batch_pairs": examples}, note
    row = _whole("max_length", recipe.settings.get("max_length") or recipe.row_tokens)
    if not recipe.settings.get("packing"):
        note += "; full rows, of which a recipe without packing fills a part"
    return {"sft.batch_tokens": examples * row}, f"{note}, x {row} tokens"


def _accumulation(key: str, value: object, recipe: Recipe) -> Translation:
    where = f"{recipe.stage}.batch_{'tokens' if recipe.stage == 'sft' else 'pairs'}"
    return {}, f"counted in {where}; micro-batches follow from the memory"


def _whole(key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{key}: {value!r} is not allowed. It should be a whole number from 1 on.")
    return value


def _warmup(key: str, value: object, recipe: Recipe) -> Translation:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{key}: {value!r} is not allowed. It should be a number.")
    param, steps = f"{recipe.stage}.warmup", recipe.settings.get("max_steps", -1)
    if key != "warmup_steps" or value < 1:
        return {param: value}, "share of the steps"
    if not isinstance(steps, int) or steps <= 0:
        return {}, f"{param} is a share of the steps, whose number the recipe does not say"
    return {param: round(value / steps, 6)}, f"of {steps} steps"


def _decay(key: str, value: object, recipe: Recipe) -> Translation:
    return {}, "as it is here" if value == {"min_lr_rate": 0.1} else "cosine ends at a tenth of the peak"


def _loss(key: str, value: object, recipe: Recipe) -> Translation:
    if recipe.stage == "sft":
        return {}, "the loss is the mean of - log p over the assistant's tokens"
    names = value if isinstance(value, list) else [value]
    known = get_args(Dpo.model_fields["loss"].annotation)
    if len(names) == 1 and names[0] in known:
        return {"dpo.loss": names[0]}, ""
    return {}, f"dpo.loss is one of {', '.join(known)}"


def _adapters(key: str, value: object, recipe: Recipe) -> Translation:
    stated, param = recipe.settings.get("lora_r"), f"{recipe.stage}.lora_rank"
    rank = _whole("lora_r", 16 if stated is None else stated)  # ModelConfig's
    if key == "use_peft":
        return {param: rank if value else 0}, "merged into a plain model in the end"
    if not recipe.settings.get("use_peft"):
        return {}, "nothing without use_peft"
    if key == "lora_r":
        return {param: rank}, ""
    if key == "lora_alpha":
        return {}, "as it is here" if value == SCALE * rank else f"alpha is {SCALE:g} x rank"
    same = value == "all-linear" or (isinstance(value, list) and sorted(map(str, value)) == sorted(TARGETS))
    return {}, "as it is here" if same else "adapters are at every projection of the decoder"


def _model(key: str, value: object, recipe: Recipe) -> Translation:
    if recipe.stage == "dpo":
        return {}, "dpo starts from out/sft"
    if os.path.isdir(str(value)):
        return {"init": str(value)}, "pretrain continues to train it, then sft"
    return {}, "no such folder; init takes one with a model of the Llama family"


def _data(key: str, value: object, recipe: Recipe) -> Translation:
    source = "data.sft" if recipe.stage == "sft" else "data.preferences"
    if isinstance(value, str) and os.path.exists(value):
        return {f"{source}.path": value}, ""
    note = f"{source}.path takes a local file or folder"
    if weights := _weights(value):
        by_name = ", ".join(f'"{name}*": {weight:g}' for name, weight in weights.items())
        note += f"; with a file of each dataset's name in it, {source}.weights is {{{by_name}}}"
    return {}, note


def _weights(mixture: object) -> dict[str, float]:
    """Return the share of each dataset of a mixture that does not take all of it, by the dataset's name.

    The old form is {id: weight}, the new one {datasets: [{id, weight}]}.
    """
    if not isinstance(mixture, dict):
        return {}
    parts = mixture.get("datasets")
    if isinstance(parts, list):
        mixture = {part["id"]: part.get("weight", 1) for part in parts if isinstance(part, dict) and "id" in part}
    return {
        str(name).rsplit("/", 1)[-1]: weight
        for name, weight in mixture.items()
        if isinstance(weight, int | float) and weight != 1
    }


RULES: dict[str, Callable[[str, object, Recipe], Translation]] = {
    BATCH: _batch,
    ACCUMULATION: _accumulation,
    "warmup_steps": _warmup,
    "lr_scheduler_kwargs": _decay,
    "loss_type": _loss,
    **dict.fromkeys(("use_peft", "lora_r", "lora_alpha", "lora_target_modules"), _adapters),
    "model_name_or_path": _model,
    **dict.fromkeys(("dataset_mixture", "dataset_name"), _data),
}
KNOWN = {*NOW, *SAME, *CHOICES, *REASONS, *RULES}
