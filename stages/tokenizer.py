"""Train the tokenizer, or adopt that of the model in `init`: special tokens and chat template included.

The corpus may be larger than memory. If it has more different words than memory holds, some 800,000, the merges are
learned from the most frequent ones, the same ones however much memory there is.

Reads  out/filter, data.validation; init, if it holds a model.
Writes out/tokenizer/      a Hugging Face tokenizer: tokenizer.json, tokenizer_config.json, chat_template.jinja
       reports/tokenizer/  metrics.json, token_length.csv
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.contract import Progress, Run, run_stage
from stages.corpus.reading.batches import batches, count, head
from stages.corpus.reading.documents import read_documents
from stages.corpus.reading.rejections import account_of
from stages.corpus.text.histograms import write_histogram
from stages.corpus.tokens.adoption import adopt, holds_model
from stages.corpus.tokens.merges import train
from stages.corpus.tokens.vocabulary import CHECKED, SPECIAL, encoder, load_vocabulary, save_tokenizer


def main(run: Run) -> None:
    """Write the tokenizer, and measure it on training and held-out texts."""
    documents, wanted = Path("out/filter/documents.parquet"), run.params.tokenizer.vocab_size
    init = Path(run.params.init)
    if adopted := holds_model(init):
        tokenizer, line = adopt(init)
        print(line, flush=True)
        tokenizer.save_pretrained(run.out)
        special = {*tokenizer.get_added_vocab()}
    else:
        progress = Progress("tokenizer, counting", total=count(documents), unit="documents")
        save_tokenizer(train(documents, wanted, progress.step), run.out)
        special = {*SPECIAL}
    vocabulary = load_vocabulary(run.out)
    if not adopted and len(vocabulary) < wanted:
        print(f"the text has pairs for {len(vocabulary):,} tokens only, of {wanted:,} asked for", flush=True)

    validation = read_documents(run.params.data.validation)
    account = account_of("data.validation", "validation documents", validation.table.num_rows, validation.rejected)
    run.account(account, run.params.max_rejected)
    texts = {"train": documents, "validation": validation.table}
    progress = Progress("tokenizer", total=sum(map(count, texts.values())), unit="documents")
    measured = {name: _measure(run.out, vocabulary, part, progress) for name, part in texts.items()}
    run.report({"vocab_size": len(vocabulary)} | measured)
    # Each letter of a byte-level vocabulary stands for one byte.
    lengths = np.array([len(token) for token in vocabulary if token not in special])
    write_histogram(run.reports / "token_length.csv", "bytes", {"tokens": lengths})


def _measure(folder: Path, vocabulary: dict[str, int], part: Path | pa.Table, progress: Progress) -> dict[str, Any]:
    """Encode the documents of ``part`` and return bytes, tokens and the share of the vocabulary that they use."""
    size, tokens = 0, np.zeros(1 + max(vocabulary.values()), np.int64)
    encode = encoder(folder, head(part, "text", CHECKED))
    for batch in batches(part, ["text"]):
        size += pc.sum(pc.binary_length(batch["text"])).as_py()
        tokens += np.bincount(encode(batch["text"].to_pylist()).tokens, minlength=len(tokens))
        progress.step(len(batch))
    return {
        "bytes": size,
        "tokens": int(tokens.sum()),
        "bytes_per_token": round(size / max(1, int(tokens.sum())), 6),
        "vocabulary_used": round(int((tokens > 0).sum()) / len(vocabulary), 6),
    }


if __name__ == "__main__":
    run_stage("tokenizer", main)
