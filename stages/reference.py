"""DVC stage `reference`: preference pairs -> out/reference, packed, with the log-probabilities that `dpo` starts from.

out/reference holds tokens.npy, cu_seqlens.npy, filled.npy, labels.npy and pairs.npy (corpus.chats.encoding.PairRows),
and logps.npy: fp32 (R, M), of each segment's answer, in nats.
"""

from pathlib import Path

from stages.contract import Progress, Run, UserError, run_stage
from stages.contract.process import worker
from stages.corpus.chats.conversations import read_preferences

START = Path("out/sft")


def main(run: Run) -> None:
    """Pack the preference pairs with their log-probabilities under the model of sft."""
    source = run.params.data.preferences
    import numpy as np

    from stages.corpus.chats.encoding import PairRows, encode_pairs, pack_pairs, problems
    from stages.corpus.chats.leaks import to_train_on
    from stages.corpus.tokens.packed_rows import load_rows, save_rows
    from stages.trainer.loop.rows import PackedRows
    from stages.trainer.model import models
    from stages.trainer.objectives.forward import measure_logps, measure_part

    if worker.is_worker():
        return measure_part(run, START, PackedRows(load_rows(run.out, PairRows)))
    records = to_train_on(source, read_preferences, run.params)
    tokenizer = models.load_tokenizer(START)
    context = min(models.shape(START).max_position_embeddings, run.params.pack.row_tokens)
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
    np.save(run.out / "logps.npy", measure_logps(run, START, rows), allow_pickle=False)
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
