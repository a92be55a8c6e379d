"""The peers' programs, each a process of its own: python benchmarks/data_peers.py NAME FOLDER ... in the peer's
environment, where nothing of this repository is. FOLDER is a corpus of benchmarks.corpora.

Settings are ours: words in fives, 112 permutations in 14 bands of 8; two processes, as there are two cores.
"""

import glob
import json
import os
import shutil
import sys
import time
from pathlib import Path

NGRAM, BANDS, ROWS = 5, 14, 8
TASKS, WORKERS = 4, 2  # files, cores


def fresh(folder: Path) -> Path:
    """``folder`` without what a run before left, which datatrove and datasets would not compute again."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def datatrove_dedup(folder: Path) -> None:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    work = fresh(folder / "datatrove")
    config = MinhashConfig(n_grams=NGRAM, num_buckets=BANDS, hashes_per_bucket=ROWS)
    signatures, buckets, gone = (str(work / name) for name in ("signatures", "buckets", "gone"))

    def run(steps: list, tasks: int, name: str) -> None:
        logs = str(work / "logs" / name)
        LocalPipelineExecutor(steps, tasks=tasks, workers=min(tasks, WORKERS), logging_dir=logs).run()

    read = JsonlReader(str(folder / "docs"))
    run([read, MinhashDedupSignature(signatures, config)], TASKS, "signatures")
    run([MinhashDedupBuckets(signatures, buckets, config=config)], BANDS, "buckets")
    run([MinhashDedupCluster(buckets, gone, config=config)], 1, "clusters")
    writer = JsonlWriter(str(work / "kept"), compression=None)
    run([read, MinhashDedupFilter(gone), writer], TASKS, "filter")


def datatrove_filter(folder: Path, tokens: str) -> None:
    """FineWeb's chain; ``tokens``: spacy, datatrove's default, or ours, runs between white space."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    language = "eng" if tokens == "spacy" else _white_space()
    filters = [
        GopherRepetitionFilter(language=language),
        GopherQualityFilter(language=language),
        C4QualityFilter(language=language, filter_no_terminal_punct=False),
        FineWebQualityFilter(language=language),
    ]
    writer = JsonlWriter(str(fresh(folder / f"datatrove-{tokens}")), compression=None)
    LocalPipelineExecutor(
        [JsonlReader(str(folder / "docs")), *filters, writer], tasks=TASKS, workers=WORKERS,
        logging_dir=str(fresh(folder / f"datatrove-{tokens}-logs")),
    ).run()  # fmt: skip


def _white_space():
    from datatrove.utils.word_tokenizers import WordTokenizer, load_word_tokenizer

    english = load_word_tokenizer("eng")

    class Words(WordTokenizer):
        def word_tokenize(self, text):
            return text.split()

        def sent_tokenize(self, text):
            return english.sent_tokenize(text)

        def span_tokenize(self, text):
            return english.span_tokenize(text)

    return Words()


def datatrove_tokens(folder: Path, tokenizer: str) -> None:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer, DocumentTokenizerMerger

    parts, whole, logs = (str(fresh(folder / f"datatrove-{name}")) for name in ("tokens", "stream", "tokens-logs"))
    step = DocumentTokenizer(parts, tokenizer, eos_token="<|endoftext|>", shuffle_documents=False)
    LocalPipelineExecutor(
        [JsonlReader(str(folder / "docs")), step], tasks=TASKS, workers=WORKERS, logging_dir=f"{logs}/parts"
    ).run()
    merge = DocumentTokenizerMerger(parts, whole, save_filename="all", shuffle=False, progress=False)
    LocalPipelineExecutor([merge], tasks=1, logging_dir=f"{logs}/whole").run()
    sizes = sum(os.path.getsize(path) for path in glob.glob(f"{whole}/*.ds"))
    print(json.dumps({"tokens": sizes // 2}))


def text_dedup(folder: Path) -> None:
    os.chdir(folder)
    for name in ("text-dedup", "text-dedup-cache"):
        fresh(folder / name)
    files = sorted(glob.glob(str(folder / "docs" / "*.jsonl")))
    Path("config.toml").write_text(f"""
[input]
input_type = "local_files"
file_type = "json"
[input.read_arguments]
path = "json"
data_files = {json.dumps(files)}
cache_dir = "{folder}/text-dedup-cache"
split = "train"
[algorithm]
algorithm_name = "minhash"
text_column = "text"
num_perm = {BANDS * ROWS}
bands = {BANDS}
rows = {ROWS}
ngram_size = {NGRAM}
min_length = {NGRAM}
threshold = 0.7
num_proc = {WORKERS}
[output]
output_dir = "{folder}/text-dedup"
save_clusters = true
keep_index_column = true
[debug]
""")
    from text_dedup.config.base import Config
    from text_dedup.minhash import main

    main(Config())


def rensa(folder: Path) -> None:
    """RMinHash of every shingle and its LSH, then connected components; the first document of each stays."""
    import re

    import orjson
    import rensa

    words, lsh = re.compile(r"\w+"), rensa.RMinHashLSH(threshold=0.0, num_perm=BANDS * ROWS, num_bands=BANDS)
    ids, shingles, root = [], [], []

    def find(k: int) -> int:
        while root[k] != k:
            root[k] = k = root[root[k]]
        return k

    def flush() -> None:
        for minhash in rensa.RMinHash.from_token_sets(shingles, BANDS * ROWS, 42):
            k = len(root)
            root.append(k)
            for other in lsh.query(minhash):
                one, two = sorted((find(k), find(other)))
                root[two] = one
            lsh.insert(k, minhash)
        shingles.clear()

    for path in sorted(glob.glob(str(folder / "docs" / "*.jsonl"))):
        with open(path, "rb") as f:
            for line in f:
                record = orjson.loads(line)
                found = words.findall(record["text"].lower())
                ids.append(record["id"])
                shingles.append({" ".join(found[k : k + NGRAM]) for k in range(max(1, len(found) - NGRAM + 1))})
                if len(shingles) == 10_000:
                    flush()
    flush()
    (folder / "rensa.kept").write_text("".join(f"{name}\n" for k, name in enumerate(ids) if root[k] == k))


def hf_train(folder: Path, vocabulary: str) -> None:
    """The tokenizers library's BPE on the same documents, settings and special tokens as the stage's."""
    import pyarrow.parquet as pq
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    ours = json.loads((folder / "ours" / "out" / "tokenizer" / "tokenizer.json").read_text())
    special = [token["content"] for token in ours["added_tokens"]]
    trainer = trainers.BpeTrainer(
        vocab_size=int(vocabulary), special_tokens=special, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    table = pq.ParquetFile(folder / "all.parquet")
    tokenizer.train_from_iterator(
        (batch["text"].to_pylist() for batch in table.iter_batches(10_000, columns=["text"])), trainer=trainer
    )
    tokenizer.save(str(folder / "hf.json"))


def trl_pack(folder: Path) -> None:
    """TRL's packing that loses nothing, of tokens that are in memory and of tokens that lie on disk."""
    from datasets import Dataset, disable_caching, load_from_disk
    from trl import pack_dataset

    disable_caching()
    rows, on_disk = fresh(folder / "trl"), folder / "tokens.arrow"
    given = load_from_disk(str(on_disk))
    in_memory = Dataset(given.data.table.combine_chunks())
    pack_dataset(in_memory.select(range(100)), 2048, "bfd_split")  # what is loaded once is not measured
    times = {}
    for name, source, out in (("memory", in_memory, None), ("disk", given, rows)):
        begin = time.process_time()
        packed = pack_dataset(source, 2048, "bfd_split")
        if out:
            packed.save_to_disk(str(out))
        times[name] = time.process_time() - begin
    total = sum(len(row) for batch in packed.iter(1000) for row in batch["input_ids"])
    print(json.dumps(times | {"rows": len(packed), "tokens": total}))


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]).absolute(), *sys.argv[3:])
