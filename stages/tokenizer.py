"""Train the tokenizer, or take that of the model to go on training: byte-level BPE, special tokens, chat template.

The corpus may be larger than memory. Where it has too many different words to remember, some 800,000, the merges are
learned from those that occur most often, the same ones however much memory there is.

Reads  out/filter, data.validation; init, if it holds a model: then its tokenizer is taken.
Writes out/tokenizer/      a Hugging Face tokenizer: tokenizer.json, tokenizer_config.json, chat_template.jinja
       reports/tokenizer/  metrics.json, token_length.csv
"""

from pathlib import Path

from stages.contract import Progress, Run, UserError, run_stage


def main(run: Run) -> None:
    import numpy as np
    import pyarrow.compute as pc

    from stages.corpus.batches import batches, count, head
    from stages.corpus.documents import read_documents
    from stages.corpus.histograms import write_histogram
    from stages.corpus.vocabulary import CHECKED, SPECIAL, encoder, load_vocabulary, save

    documents = Path("out/filter/documents.parquet")
    wanted = run.params.tokenizer.vocab_size
    given = Path(run.params.init) / "tokenizer.json"
    save(given.read_text(encoding="utf-8") if given.exists() else _trained(documents, wanted), run.out)
    vocabulary = load_vocabulary(run.out)
    if lacking := [token for token in SPECIAL if token not in vocabulary]:
        raise UserError(
            f"{given} has no {', '.join(lacking)}, which documents and conversations are marked with. "
            "Add them to the model's tokenizer, or point `init` at another model."
        )
    if given.exists():
        print(f"the tokenizer of the model in {run.params.init}: {len(vocabulary):,} tokens", flush=True)
    elif len(vocabulary) < wanted:
        print(f"the text has pairs for {len(vocabulary):,} tokens only, of {wanted:,} asked for", flush=True)

    metrics = {"vocab_size": len(vocabulary)}
    texts = {"train": documents, "validation": read_documents(run.params.data.validation).table}
    progress = Progress("tokenizer", total=sum(map(count, texts.values())), unit="documents")
    for name, part in texts.items():
        size, tokens = 0, np.zeros(len(vocabulary), np.int64)
        encode = encoder(run.out, head(part, "text", CHECKED))
        for batch in batches(part, ["text"]):
            size += pc.sum(pc.binary_length(batch["text"])).as_py()
            tokens += np.bincount(encode(batch["text"].to_pylist()).tokens, minlength=len(vocabulary))
            progress.step(len(batch))
        metrics[name] = {
            "bytes": size,
            "tokens": int(tokens.sum()),
            "bytes_per_token": round(size / max(1, int(tokens.sum())), 6),
            "vocabulary_used": round(int((tokens > 0).sum()) / len(vocabulary), 6),
        }
    run.report(metrics, ("train.bytes_per_token",))
    # Each letter of a byte-level vocabulary stands for one byte.
    lengths = np.array([len(token) for token in vocabulary if token not in SPECIAL])
    write_histogram(run.reports / "token_length.csv", "bytes", {"tokens": lengths})


def _trained(documents: Path, vocab_size: int) -> str:
    """A tokenizer.json."""
    from stages.corpus.batches import count
    from stages.corpus.merges import train

    return train(documents, vocab_size, Progress("tokenizer, counting", total=count(documents), unit="documents").step)


if __name__ == "__main__":
    run_stage("tokenizer", main)
