"""DVC stage `reference`: preference pairs -> out/reference, packed, with the log-probabilities that `dpo` starts from.

Reads  data.preferences, data.evals, out/sft.
Writes out/reference/      tokens.npy, cu_seqlens.npy, filled.npy, labels.npy, pairs.npy: see
                           stages.corpus.chats.PairRows; logps.npy: fp32 (R, M), of each segment's answer, in nats
       reports/reference/  metrics.json
"""

from pathlib import Path

from stages.contract import Progress, Run, UserError, run_stage
from stages.corpus.conversations import read_preferences


def main(run: Run) -> None:
    source = run.params.data.preferences
    import numpy as np

    from stages.corpus.chats import encode_pair, pack_pairs
    from stages.corpus.leaks import to_train_on
    from stages.corpus.packing import save_rows
    from stages.trainer import models
    from stages.trainer.preference import forward_recipe, reference_logps
    from stages.trainer.rows import PackedRows

    records = to_train_on("pair", source, read_preferences, run.params)
    model, tokenizer = models.load(Path("out/sft"))
    context = min(model.config.max_position_embeddings, run.params.pack.row_tokens)
    progress = Progress("reference, encoding", total=len(records.train), unit="pairs")
    pairs = []
    for record in records.train:
        pairs.append(encode_pair(tokenizer, record, context - 1))
        progress.step(1)
    usable = [pair for pair in pairs if len(pair.chosen_positions) and len(pair.rejected_positions)]
    if not usable:
        raise UserError(f"{source.path}: no answer of any pair has a token in the model's {context}.")
    packed = pack_pairs(tokenizer, usable, 2 * context, run.params.seed)
    save_rows(packed, run.out)
    rows = PackedRows(packed)
    chosen = forward_recipe(Path("out/sft"), rows, run.params.trainer)
    progress = Progress("reference, log-probabilities", total=len(rows), unit="rows")
    np.save(run.out / "logps.npy", reference_logps(model, rows, chosen, progress.step), allow_pickle=False)
    run.report({
        "pairs": len(usable), "held_out": len(records.test), "set_aside": records.set_aside,
        "cut": sum(pair.cut for pair in usable), "no_answer_left": len(pairs) - len(usable), "rows": len(rows),
        "row_tokens": rows.row_tokens, "filled_share": round(float(packed.filled.mean()) / rows.row_tokens, 6),
    } | ({"mixture": records.mixture} if records.mixture else {}), headline=("pairs",))  # fmt: skip


if __name__ == "__main__":
    run_stage("reference", main)
