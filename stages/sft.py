"""DVC stage `sft`: out/pretrain + conversations -> out/sft, trained on what the assistant says."""

from pathlib import Path

from stages.contract import Run, UserError, run_stage
from stages.corpus.conversations import read_conversations


def main(run: Run) -> None:
    params = run.params.sft
    conversations = read_conversations(run.params.data.sft)
    if not conversations.train:
        raise UserError(f"{run.params.data.sft.path} holds no conversation to train on: {conversations.set_aside}")
    from datasets import Dataset
    from transformers import set_seed
    from trl import SFTConfig, SFTTrainer

    from stages.corpus.vocabulary import TURN_END
    from stages.scaling.shapes import Shape
    from stages.trainer import fit, hardware, models, recipe

    set_seed(run.params.seed)
    model, tokenizer = models.load(Path("out/pretrain"))
    row_tokens = model.config.max_position_embeddings
    batch_rows = max(1, params.batch_tokens // row_tokens)
    shape = Shape.of(model.config.to_dict())
    chosen = recipe.resolve(hardware.detect(), shape, batch_rows, row_tokens, flattened=True)
    print(chosen.table(), flush=True)
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([{"messages": c["messages"]} for c in conversations.train]),
        args=SFTConfig(
            **fit.arguments(run, params.learning_rate, params.warmup),
            **chosen.arguments(),
            num_train_epochs=params.epochs,
            max_length=row_tokens,
            packing=True,
            packing_strategy="bfd",
            assistant_only_loss=True,
        ),
    )
    history = fit.fit(trainer, run, "sft")
    # An answer ends with its turn; what generates with this model must know.
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(TURN_END)]
    trainer.model.generation_config.eos_token_id = ends
    models.save(trainer.model, tokenizer, run.out)
    fit.write_curve(run.reports / "loss.csv", history, ["loss", "learning_rate", "grad_norm"])
    run.report({
        "steps": trainer.state.max_steps, "conversations": len(conversations.train),
        "held_out": len(conversations.test), "set_aside": conversations.set_aside,
        "train_loss": fit.final(history, "loss"),
    }, headline=("train_loss",))  # fmt: skip


if __name__ == "__main__":
    run_stage("sft", main)
