"""DVC stage `chats`: pack conversations into rows, with labels for the assistant's tokens.

Reads  data.sft, data.evals, out/tokenizer.
Writes out/chats/      tokens.npy, cu_seqlens.npy, filled.npy, labels.npy: see stages.corpus.chats.encoding.Chats
       reports/chats/  metrics.json, conversation_tokens.csv, examples.html: some with the labels in color
"""

from pathlib import Path

from stages.contract import Progress, Run, UserError, run_stage
from stages.corpus.chats.conversations import read_conversations

EXAMPLES = 5
UNIT = "conversations"


def main(run: Run) -> None:
    """Pack the training conversations, and record what is held out."""
    source = run.params.data.sft
    import numpy as np

    from stages.corpus.chats.encoding import chat_page, pack_chats
    from stages.corpus.chats.leaks import to_train_on
    from stages.corpus.text.histograms import write_histogram
    from stages.corpus.tokens.packed_rows import save_rows
    from stages.trainer.model import models

    conversations = to_train_on(source, read_conversations, run.params)
    messages = [conversation["messages"] for conversation in conversations.train]
    tokenizer, row_tokens = models.load_tokenizer(Path("out/tokenizer")), run.params.pack.row_tokens
    progress = Progress("chats", total=len(messages), unit=UNIT)
    try:
        rows, counts = pack_chats(tokenizer, messages, row_tokens, run.params.seed, progress.step)
    except ValueError as e:
        raise UserError(f"{source.path}: {e} in the first {row_tokens} tokens.") from None
    conversations = conversations.without("no answer left", counts["no_answer_left"])
    run.account(conversations.account("data.sft", UNIT), run.params.max_rejected)
    if conversations.shortened:
        print(f"{conversations.shortened:,} {UNIT} end with the user and are used up to their last answer", flush=True)
    save_rows(rows, run.out)
    (run.reports / "examples.html").write_text(chat_page(tokenizer, rows, EXAMPLES), encoding="utf-8")
    lengths = np.diff(rows.cu_seqlens, axis=1)
    lengths = lengths[(lengths > 0) & (rows.cu_seqlens[:, 1:] <= rows.filled[:, None])]  # not the padding
    write_histogram(run.reports / "conversation_tokens.csv", "tokens", {"train": lengths})
    metrics = counts | {
        "held_out": len(conversations.test),
        "rows": len(rows.tokens),
        "row_tokens": row_tokens,
        "filled_share": round(counts["tokens"] / rows.tokens.size, 6),
    }
    more = {"mixture": conversations.mixture, "shortened": conversations.shortened}
    run.report(metrics | {name: value for name, value in more.items() if value})


if __name__ == "__main__":
    run_stage("chats", main)
