"""DVC stage `dpo`: out/sft + preference pairs -> out/dpo (Rafailov et al. 2023, arXiv:2305.18290)."""

from pathlib import Path

from stages.contract import Run, UserError, run_stage
from stages.corpus.conversations import read_preferences


def main(run: Run) -> None:
    params = run.params.dpo
    pairs = read_preferences(run.params.data.preferences)
    if not pairs.train:
        raise UserError(f"{run.params.data.preferences.path} holds no pair to train on: {pairs.set_aside}")
    from datasets import Dataset
    from transformers import set_seed
    from trl import DPOConfig, DPOTrainer

    from stages.scaling.shapes import Shape
    from stages.trainer import fit, hardware, models, recipe

    set_seed(run.params.seed)
    model, tokenizer = models.load(Path("out/sft"))
    row_tokens = model.config.max_position_embeddings
    # A pair is two rows, and the reference model's forward passes come before training.
    shape = Shape.of(model.config.to_dict())
    chosen = recipe.resolve(hardware.detect(), shape, params.batch_pairs, 2 * row_tokens)
    print(chosen.table(), flush=True)
    columns = ("prompt", "chosen", "rejected")
    trainer = DPOTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([{c: pair[c] for c in columns} for pair in pairs.train]),
        args=DPOConfig(
            **fit.arguments(run, params.learning_rate, params.warmup),
            **chosen.arguments(),
            num_train_epochs=params.epochs,
            max_length=row_tokens,
            beta=params.beta,
            loss_type=[params.loss],
            precompute_ref_log_probs=True,
            precompute_ref_batch_size=chosen.micro_batch,
        ),
    )
    usable = len(trainer.train_dataset)
    if not usable:
        raise UserError(f"every prompt in {run.params.data.preferences.path} fills the model's {row_tokens} tokens.")
    history = fit.fit(trainer, run, "dpo")
    models.save(trainer.model, tokenizer, run.out)
    fit.write_curve(run.reports / "loss.csv", history, ["loss", "learning_rate", "grad_norm"])
    rewards = ["rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected"]
    fit.write_curve(run.reports / "rewards.csv", history, rewards)
    run.report({
        "steps": trainer.state.max_steps, "pairs": usable, "prompt_too_long": len(pairs.train) - usable,
        "held_out": len(pairs.test), "set_aside": pairs.set_aside, "train_loss": fit.final(history, "loss"),
        "reward_margin": fit.final(history, "rewards/margins"),
        "reward_accuracy": fit.final(history, "rewards/accuracies"),
    }, headline=("reward_accuracy",))  # fmt: skip


if __name__ == "__main__":
    run_stage("dpo", main)
