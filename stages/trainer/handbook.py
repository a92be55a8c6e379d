"""Recipes of the alignment-handbook (SFT, DPO, ORPO; github.com/huggingface/alignment-handbook) in our parameters.

Names are those of TRL 1.16 and transformers 5.17; a recipe may use the old ones of NOW.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from stages.contract.errors import UserError
from stages.contract.params import Dpo
from stages.trainer.lora import SCALE, TARGETS

# old name -> what the setting is called now
NOW = {
    "torch_dtype": "dtype",
    "max_seq_length": "max_length",
    "warmup_ratio": "warmup_steps",
    "dataset_mixer": "dataset_mixture",
    "evaluation_strategy": "eval_strategy",
    "use_flash_attention_2": "attn_implementation",
    "hub_model_revision": "hub_revision",
}

# setting -> (the parameter with the same meaning and value, what to know); {stage} is sft or dpo
SAME = {
    "learning_rate": ("{stage}.learning_rate", ""),
    "num_train_epochs": ("{stage}.epochs", ""),
    "max_length": ("pack.row_tokens", "rows of pretraining too"),
    "beta": ("dpo.beta", ""),
    "label_smoothing": ("dpo.label_smoothing", "read by robust alone"),
    "simpo_gamma": ("dpo.gamma", "read by simpo alone"),
    "seed": ("seed", "of every stage"),
}

# setting -> (parameter, {their value: ours}, what to know); other values have no counterpart
CHOICES = {
    "lr_scheduler_type": (
        "trainer.schedule",
        {
            "cosine": "cosine", "cosine_with_min_lr": "cosine", "constant": "constant",
            "constant_with_warmup": "constant", "warmup_stable_decay": "wsd",
        },
        "cosine ends at a tenth of the peak",
    ),
    "optim": (
        "trainer.optimizer",
        {name: "adamw" for name in ("adamw_torch", "adamw_torch_fused", "adamw_hf")}
        | {name: "adamw" for name in ("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit")}
        | {"lion_32bit": "lion", "lion_8bit": "lion", "muon": "muon", "schedule_free_adamw": "schedule_free"},
        "states are fp32; trainer.offload keeps them in the host's memory",
    ),
    "attn_implementation": (
        "trainer.attention",
        {name: "auto" for name in ("flash_attention_2", "flash_attention_3", True)}
        | {"sdpa": "sdpa", "eager": "eager", "flex_attention": "flex"},
        "auto takes the fastest there is; all of them mask documents",
    ),
    "bf16": ("trainer.precision", {True: "auto", False: "fp32"}, "auto is bf16 on a GPU that has it"),
    "gradient_checkpointing": (
        "trainer.checkpointing", {True: "auto", False: "none"},
        "auto computes again what does not fit, and no more; full is everything",
    ),
}  # fmt: skip

# why -> settings without a counterpart
NOWHERE = {
    "weights are fp32, products what trainer.precision says": ("dtype", "fp16", "tf32", "bf16_full_eval"),
    "weights are not quantized; lora_rank trains adapters beside fp32": (
        "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage",
    ),
    "adapters are plain: no dropout, no biases, every projection": (
        "lora_dropout", "lora_task_type", "lora_modules_to_save", "lora_target_parameters", "use_rslora", "use_dora",
    ),
    "rows are always packed, without padding and with documents masked": (
        "packing", "packing_strategy", "padding_free", "eval_packing", "pad_to_multiple_of", "group_by_length",
        "dataset_kwargs", "shuffle_dataset",
    ),
    "only what the assistant says is learned, always": ("assistant_only_loss", "completion_only_loss"),
    "the template is ChatML, its generation block holds the end of turn (stages/corpus/vocabulary.py)": (
        "chat_template", "chat_template_path", "eos_token", "pad_token", "chat_template_kwargs",
        "auto_insert_empty_system_msg",
    ),
    "a prompt too long for the row loses its beginning, an answer its end": (
        "max_prompt_length", "max_completion_length", "truncation_mode", "truncation_side",
    ),
    "reference log-probabilities are always computed once, by the stage reference": (
        "precompute_ref_log_probs", "precompute_ref_batch_size", "ref_model_init_kwargs", "sync_ref_model",
        "ref_model_mixup_alpha", "ref_model_sync_steps",
    ),
    "the divergence is reverse KL, losses are not mixed or weighted": (
        "f_divergence_type", "f_alpha_divergence_coef", "loss_weights", "use_weighting", "rpo_alpha", "ld_alpha",
        "discopop_tau", "disable_dropout",
    ),
    "gradients are clipped at a norm of 1, weights do not decay, AdamW's betas are 0.9 and 0.999": (
        "max_grad_norm", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "average_tokens_across_devices",
        "neftune_noise_alpha",
    ),
    "recomputation is not reentrant": ("gradient_checkpointing_kwargs", "activation_offloading"),
    "the chunked head and loss are always on; trainer.kernels: liger adds its norms": (
        "use_liger_kernel", "use_liger", "use_liger_loss",
    ),
    "training goes by epochs": ("max_steps",),
    "data is local files of messages, or of prompt, chosen and rejected": (
        "dataset_config", "dataset_splits", "dataset_configs", "dataset_train_split", "dataset_test_split",
        "dataset_streaming", "dataset_text_field", "text_column", "columns_to_keep", "remove_unused_columns",
    ),
    "processes are not a parameter; the data stages use every core": (
        "dataset_num_proc", "preprocessing_num_workers", "dataloader_num_workers", "ddp_timeout", "torch_compile",
        "deepspeed", "fsdp", "fsdp_config",
    ),
    "a stage always trains; eval measures all models in the end": (
        "do_train", "do_eval", "eval_strategy", "eval_steps", "per_device_eval_batch_size", "metric_for_best_model",
    ),
    "a stage writes to its out; checkpoints come and go by themselves (VERDICT_CHECKPOINT_SECONDS)": (
        "output_dir", "overwrite_output_dir", "save_strategy", "save_steps", "save_total_limit",
        "resume_from_checkpoint",
    ),
    "MLflow records every run; VERDICT_LOG_STEPS says how often": (
        "logging_steps", "logging_strategy", "logging_first_step", "logging_dir", "log_level", "report_to", "run_name",
        "wandb_project", "wandb_entity",
    ),
    "nothing is loaded from or pushed to a hub": (
        "push_to_hub", "hub_model_id", "hub_revision", "hub_strategy", "hub_private_repo", "hub_token",
        "model_revision", "model_code_revision", "tokenizer_name_or_path", "use_auth_token",
    ),
    "code of a checkpoint is never run": ("trust_remote_code",),
}  # fmt: skip
REASONS = {name: why for why, names in NOWHERE.items() for name in names}

PREFERENCE = {"beta", "loss_type", "max_prompt_length", "simpo_gamma", "precompute_ref_log_probs", "rpo_alpha"}
BATCH, ACCUMULATION = "per_device_train_batch_size", "gradient_accumulation_steps"
HANDLED = {
    BATCH, ACCUMULATION, "warmup_steps", "lr_scheduler_kwargs", "loss_type", "use_peft", "lora_r", "lora_alpha",
    "lora_target_modules", "model_name_or_path", "dataset_mixture", "dataset_name",
}  # fmt: skip
KNOWN = {*NOW, *SAME, *CHOICES, *REASONS, *HANDLED}


@dataclass(frozen=True)
class Line:
    """What becomes of ``key: value`` of a recipe: ``params`` it sets, dotted names, and what to know of it or why it
    sets none."""

    key: str
    value: object
    params: dict[str, object] = field(default_factory=dict)
    note: str = ""


def objective(recipe: dict, path: Path) -> str:
    """sft, dpo or orpo: by the folders of ``path``, as the handbook sorts its recipes, or by the recipe's keys."""
    for part in (*path.stem.split("_"), *reversed(path.parts)):  # the nearest folder
        if part in ("orpo", "dpo", "sft"):
            return part
    if not PREFERENCE & recipe.keys():
        return "sft"
    return "orpo" if "orpo" in str(recipe.get("output_dir", "")).lower() else "dpo"


def translate(recipe: dict, kind: str, gpus: int, row_tokens: int) -> list[Line]:
    """A line for each key of ``recipe``, in its order, and for what the objective sets by itself.

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
    by_name = {NOW.get(key, key): value for key, value in recipe.items()}
    stage = "sft" if kind == "sft" else "dpo"
    lines = [_line(key, value, by_name, stage, gpus, row_tokens) for key, value in recipe.items()]
    return [*lines, *_implied(by_name, kind)]


def _implied(recipe: dict, kind: str) -> Iterator[Line]:
    if kind == "orpo":
        yield Line("(objective)", "orpo", {"dpo.loss": "orpo"}, "from the model of sft; beta is its lambda")
    elif kind == "dpo" and "loss_type" not in recipe:
        yield Line("(loss_type)", "sigmoid", {"dpo.loss": "sigmoid"}, "what DPOTrainer takes")


def _line(key: str, value, recipe: dict, stage: str, gpus: int, row_tokens: int) -> Line:
    name = NOW.get(key, key)
    if value is None and name in KNOWN:  # TRL's "none": do not cut, no adapters
        return Line(key, value, {}, "not set there, and as it is here")
    if name in SAME:
        param, note = SAME[name]
        return Line(key, value, {param.format(stage=stage): value}, note)
    if name in CHOICES:
        param, ours, note = CHOICES[name]
        found = ours.get(value) if isinstance(value, str | bool) else None
        if found is None:
            return Line(key, value, {}, f"{param} has none of that name")
        return Line(key, value, {param: found}, note)
    if name in REASONS:
        return Line(key, value, {}, REASONS[name])
    match name:
        case "per_device_train_batch_size":
            return _batch(value, recipe, stage, gpus, row_tokens)
        case "gradient_accumulation_steps":
            where = f"{stage}.batch_{'tokens' if stage == 'sft' else 'pairs'}"
            return Line(key, value, {}, f"counted in {where}; micro-batches follow from the memory")
        case "warmup_steps":
            return _warmup(key, value, recipe, stage)
        case "lr_scheduler_kwargs":
            same = isinstance(value, dict) and value == {"min_lr_rate": 0.1}
            return Line(key, value, {}, "as it is here" if same else "cosine ends at a tenth of the peak")
        case "loss_type":
            return _loss(value, stage)
        case "use_peft" | "lora_r" | "lora_alpha" | "lora_target_modules":
            return _adapters(name, value, recipe, stage)
        case "model_name_or_path":
            return _model(value, stage)
        case "dataset_mixture" | "dataset_name":
            return _data(key, value, stage)
    return Line(key, value, {}, "not a key that is known")


def _batch(value, recipe: dict, stage: str, gpus: int, row_tokens: int) -> Line:
    parts = (_whole(BATCH, value), _whole(ACCUMULATION, recipe.get(ACCUMULATION, 1)), gpus)
    examples = parts[0] * parts[1] * parts[2]
    product = " x ".join(map(str, parts))
    told = f"{product}: of a device, accumulated, GPUs (--gpus)"
    if stage == "dpo":
        return Line(BATCH, value, {"dpo.batch_pairs": examples}, told)
    row = _whole("max_length", recipe.get("max_length") or row_tokens)
    if not recipe.get("packing"):
        told += "; full rows, of which a recipe without packing fills a part"
    return Line(BATCH, value, {"sft.batch_tokens": examples * row}, f"{told}, x {row} tokens")


def _whole(key: str, value) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{key}: {value!r} is not allowed. It should be a whole number from 1 on.")
    return value


def _warmup(key: str, value, recipe: dict, stage: str) -> Line:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{key}: {value!r} is not allowed. It should be a number.")
    steps = recipe.get("max_steps", -1)
    if key == "warmup_steps" and value >= 1:
        if not isinstance(steps, int) or steps <= 0:
            return Line(key, value, {}, f"{stage}.warmup is a share of the steps, whose number the recipe does not say")
        return Line(key, value, {f"{stage}.warmup": round(value / steps, 6)}, f"of {steps} steps")
    return Line(key, value, {f"{stage}.warmup": value}, "share of the steps")


def _loss(value, stage: str) -> Line:
    if stage == "sft":
        return Line("loss_type", value, {}, "the loss is the mean of - log p over the assistant's tokens")
    names = value if isinstance(value, list) else [value]
    known = get_args(Dpo.model_fields["loss"].annotation)
    if len(names) == 1 and names[0] in known:
        return Line("loss_type", value, {"dpo.loss": names[0]})
    return Line("loss_type", value, {}, f"dpo.loss is one of {', '.join(known)}")


def _adapters(name: str, value, recipe: dict, stage: str) -> Line:
    rank = _whole("lora_r", recipe.get("lora_r") or 16)  # ModelConfig's
    if name == "use_peft":
        return Line(name, value, {f"{stage}.lora_rank": rank if value else 0}, "merged into a plain model in the end")
    if not recipe.get("use_peft"):
        return Line(name, value, {}, "nothing without use_peft")
    if name == "lora_r":
        return Line(name, value, {f"{stage}.lora_rank": value})
    if name == "lora_alpha":
        return Line(name, value, {}, "as it is here" if value == SCALE * rank else f"alpha is {SCALE:g} x rank")
    same = value == "all-linear" or (isinstance(value, list) and sorted(map(str, value)) == sorted(TARGETS))
    return Line(name, value, {}, "as it is here" if same else "adapters are at every projection of the decoder")


def _model(value, stage: str) -> Line:
    if stage == "dpo":
        return Line("model_name_or_path", value, {}, "dpo starts from out/sft")
    if os.path.isdir(str(value)):
        return Line("model_name_or_path", value, {"init": str(value)}, "pretrain goes on from it, then sft")
    return Line("model_name_or_path", value, {}, "no such folder; init takes one with a model of the Llama family")


def _data(key: str, value, stage: str) -> Line:
    source = "data.sft" if stage == "sft" else "data.preferences"
    if isinstance(value, str) and os.path.exists(value):
        return Line(key, value, {f"{source}.path": value})
    told = f"{source}.path takes a local file or folder"
    if weights := _weights(value):
        by_name = ", ".join(f'"{name}*": {weight:g}' for name, weight in weights.items())
        told += f"; with a file of each dataset's name in it, {source}.weights is {{{by_name}}}"
    return Line(key, value, {}, told)


def _weights(mixture) -> dict[str, float]:
    """A dataset's name -> what share of it a mixture takes, where that is not all: of the old form {id: weight}, or the
    new one, {datasets: [{id, weight}]}."""
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
