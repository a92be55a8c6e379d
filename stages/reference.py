"""DVC stage `reference`: preference pairs -> out/reference, packed, with the log-probabilities that `dpo` starts from.

out/reference holds tokens.npy, cu_seqlens.npy, filled.npy, labels.npy and pairs.npy (corpus.chats.encoding.PairRows),
and logps.npy: fp32 (R, M), of each segment's answer, in nats.
"""

from pathlib import Path

from stages.contract import Progress, Run, UserError, run_stage
from stages.corpus.chats.conversations import read_preferences


def main(run: Run) -> None:
    """Pack the preference pairs with their log-probabilities under the model of sft."""
    source = run.params.data.preferences
    import numpy as np

    from stages.corpus.chats.encoding import encode_pairs, pack_pairs, problems
    from stages.corpus.chats.leaks import to_train_on
    from stages.corpus.tokens.packed_rows import save_rows
    from stages.trainer.loop.rows import PackedRows
    from stages.trainer.model import models
    from stages.trainer.objectives.preference import forward_recipe, reference_logps

    records = to_train_on(source, read_preferences, run.params)
    model, tokenizer = models.load(Path("out/sft"))
    context = min(model.config.max_position_embeddings, run.params.pack.row_tokens)
    progress = Progress("reference, encoding", total=len(records.train), unit="pairs")
    pairs = []
    for pair in encode_pairs(tokenizer, records.train, context - 1):
        pairs.append(pair)
        progress.step(1)
    usable = [pair for pair in pairs if not pair.problem]
    for reason, count in problems(records.train, pairs).items():
        records = records.without(reason, count)
    run.account(records.account("data.preferences", "pairs"), run.params.max_rejected)
    if not usable:
        raise UserError(
            f"{source.path}: no pair has two different answers in the model's {context} tokens. Raise pack.row_tokens, "
            "or take shorter pairs."
        )
    packed = pack_pairs(tokenizer, usable, 2 * context, run.params.seed)
    save_rows(packed, run.out)
    rows = PackedRows(packed)
    chosen = forward_recipe(Path("out/sft"), rows, run.params.trainer)
    progress = Progress("reference, log-probabilities", total=len(rows), unit="rows")
    np.save(run.out / "logps.npy", reference_logps(model, rows, chosen, progress.step), allow_pickle=False)
    metrics = {
        "pairs": len(usable),
        "held_out": len(records.test),
        "cut": sum(pair.cut for pair in usable),
        "rows": len(rows),
        "row_tokens": rows.row_tokens,
        "filled_share": round(float(packed.filled.mean()) / rows.row_tokens, 6),
    }
    run.report(metrics | ({"mixture": records.mixture} if records.mixture else {}))


if __name__ == "__main__":
    run_stage("reference", main)
