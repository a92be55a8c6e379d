"""DVC stage `chats`: conversations -> out/chats, packed rows with labels for what the assistant says.

Reads  data.sft, data.evals, out/tokenizer.
Writes out/chats/      tokens.npy, cu_seqlens.npy, filled.npy, labels.npy: see stages.corpus.chats.Chats
       reports/chats/  metrics.json, conversation_tokens.csv, examples.html: some as they are learned
"""

from pathlib import Path

from stages.contract import Progress, Run, UserError, run_stage
from stages.corpus.conversations import read_conversations

EXAMPLES = 5


def main(run: Run) -> None:
    source = run.params.data.sft
    import numpy as np

    from stages.corpus.chats import pack_chats, show
    from stages.corpus.histograms import write_histogram
    from stages.corpus.leaks import to_train_on
    from stages.corpus.packing import save_rows
    from stages.trainer import models

    conversations = to_train_on("conversation", source, read_conversations, run.params)
    messages = [conversation["messages"] for conversation in conversations.train]
    tokenizer, row_tokens = models.load_tokenizer(Path("out/tokenizer")), run.params.pack.row_tokens
    progress = Progress("chats", total=len(messages), unit="conversations")
    try:
        rows, counts = pack_chats(tokenizer, messages, row_tokens, run.params.seed, progress.step)
    except ValueError as e:
        raise UserError(f"{source.path}: {e} in the first {row_tokens} tokens.") from None
    save_rows(rows, run.out)
    (run.reports / "examples.html").write_text(show(tokenizer, rows, EXAMPLES), encoding="utf-8")
    lengths = np.diff(rows.cu_seqlens, axis=1)
    lengths = lengths[(lengths > 0) & (rows.cu_seqlens[:, 1:] <= rows.filled[:, None])]  # not the padding
    write_histogram(run.reports / "conversation_tokens.csv", "tokens", {"train": lengths})
    run.report({
        "conversations": len(messages) - counts["no_answer_left"], "held_out": len(conversations.test),
        "set_aside": conversations.set_aside, **counts, "rows": len(rows.tokens), "row_tokens": row_tokens,
        "filled_share": round(counts["tokens"] / rows.tokens.size, 6),
    } | ({"mixture": conversations.mixture} if conversations.mixture else {}), ("assistant_tokens",))  # fmt: skip


if __name__ == "__main__":
    run_stage("chats", main)
