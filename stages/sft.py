"""DVC stage `sft`: out/pretrain + out/chats -> out/sft, trained on what the assistant says."""

from pathlib import Path

from stages.contract import Run, run_stage


def main(run: Run) -> None:
    params = run.params.sft
    from stages.corpus.chats import Chats
    from stages.corpus.packing import load_rows
    from stages.scaling.shapes import divisible
    from stages.trainer import fit
    from stages.trainer.rows import PackedRows
    from stages.trainer.tuning import Work, tune

    rows = PackedRows(load_rows(Path("out/chats"), Chats))
    batch_rows = divisible(params.batch_tokens / rows.row_tokens)
    trained = tune(Work(run, "sft", Path("out/pretrain"), rows, batch_rows, params), _trainer)
    if trained:
        steps, history = trained
        fit.write_curve(run.reports / "loss.csv", history, ["loss", "learning_rate", "grad_norm"])
        fit.write_curve(run.reports / "stops.csv", history, ["stop_probability"])
        found = {"steps": steps, "train_loss": fit.final(history, "loss")}
        if any("stop_probability" in entry for entry in history):  # not where every conversation is cut before its end
            found["stop_probability"] = fit.final(history, "stop_probability")
        run.report(found, headline=("train_loss",))


def _trainer(model, tokenizer, **kwargs):
    from stages.corpus.vocabulary import TURN_END
    from stages.trainer.chat import ChatTrainer

    turn_end = tokenizer.convert_tokens_to_ids(TURN_END)
    # An answer ends with its turn; what generates with this model must know.
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, turn_end]
    return ChatTrainer(model, turn_end, **kwargs)


if __name__ == "__main__":
    run_stage("sft", main)
