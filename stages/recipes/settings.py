"""The settings of the alignment-handbook's recipes, and the parameter that each becomes or why there is none.

Names are those of TRL 1.16 and transformers 5.17; a recipe may use the old ones of NOW.
"""

from typing import Any

# old name of a setting -> present name
NOW = {
    "torch_dtype": "dtype",
    "max_seq_length": "max_length",
    "warmup_ratio": "warmup_steps",
    "dataset_mixer": "dataset_mixture",
    "evaluation_strategy": "eval_strategy",
    "use_flash_attention_2": "attn_implementation",
    "hub_model_revision": "hub_revision",
}

# setting -> (the parameter with the same meaning and value, a note); {stage} is sft or dpo
SAME = {
    "learning_rate": ("{stage}.learning_rate", ""),
    "num_train_epochs": ("{stage}.epochs", ""),
    "max_length": ("pack.row_tokens", "rows of pretraining too"),
    "beta": ("dpo.beta", ""),
    "label_smoothing": ("dpo.label_smoothing", "read by robust alone"),
    "simpo_gamma": ("dpo.gamma", "read by simpo alone"),
    "seed": ("seed", "of every stage"),
}

# setting -> (parameter, {their value: ours}, a note); other values have no counterpart
CHOICES: dict[str, tuple[str, dict[Any, str], str]] = {
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
        "auto recomputes only the activations that do not fit; full recomputes all",
    ),
}  # fmt: skip

# why -> settings without a counterpart
NOWHERE = {
    "weights are fp32; trainer.precision sets the dtype of products": ("dtype", "fp16", "tf32", "bf16_full_eval"),
    "weights are not quantized; lora_rank trains adapters of fp32 weights": (
        "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage",
    ),
    "adapters are plain: no dropout, no biases, every projection": (
        "lora_dropout", "lora_task_type", "lora_modules_to_save", "lora_target_parameters", "use_rslora", "use_dora",
    ),
    "rows are always packed, without padding and with documents masked": (
        "packing", "packing_strategy", "padding_free", "eval_packing", "pad_to_multiple_of", "group_by_length",
        "dataset_kwargs", "shuffle_dataset",
    ),
    "only the assistant's words are learned, always": ("assistant_only_loss", "completion_only_loss"),
    "the template is ChatML, its generation block holds the end of turn (stages/corpus/tokens/vocabulary.py)": (
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
