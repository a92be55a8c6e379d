"""Our side of benchmarks.data: the stages in folders of their own, and parts of them that a peer does by itself.

    python -m benchmarks.data_ours NAME FOLDER

NAME is a function of this file, FOLDER a corpus that `benchmarks.corpora` made.
"""

import json
import os
import shutil
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VOCABULARY, ROW = 32_768, 2048
PLACE = "ours"  # the folder in a corpus where the parts below work


def place(folder: Path, name: str, documents: Path | None = None) -> Path:
    """A new folder for stages and the params; ``documents``, if given, are what dedup and filter wrote."""
    from ruamel.yaml import YAML

    yaml, work = YAML(), folder / name
    params = yaml.load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for source in params["data"].values():
        source["path"] = str(ROOT / source["path"])
    params["data"]["pretrain"] = {"path": str(folder / "docs"), "files": "*.jsonl"}
    params["init"] = "none"
    params["dedup"].update(ngram=5, permutations=112, bands=14, threshold=0.0, against="none")  # 0: whoever shares one
    params["filter"].update(  # datatrove's defaults
        definitions="published", min_language_score=0, min_words=50, min_alphabetic_words=0.8, max_contamination=1.0
    )
    params["filter"]["c4"]["apply"] = params["filter"]["fineweb"]["apply"] = True
    params["tokenizer"]["vocab_size"], params["pack"]["row_tokens"] = VOCABULARY, ROW
    shutil.rmtree(work, ignore_errors=True)  # a stage goes on with what it finds
    work.mkdir()
    with (work / "params.yaml").open("w", encoding="utf-8") as f:
        yaml.dump(params, f)
    for stage in ("dedup", "filter") if documents else ():
        path = work / "out" / stage / "documents.parquet"
        path.parent.mkdir(parents=True)
        path.symlink_to(documents)
    return work


def table(folder: Path) -> None:
    """all.parquet: all documents as the stages write them, in order of id, in row groups."""
    import orjson
    import pyarrow as pa
    import pyarrow.parquet as pq

    records = [orjson.loads(line) for path in sorted((folder / "docs").iterdir()) for line in path.open("rb")]
    records.sort(key=lambda record: record["id"])
    columns = [pa.array([r[k] for r in records], pa.large_string()) for k in ("id", "text", "source")]
    pq.write_table(pa.table(columns, ["id", "text", "source"]), folder / "all.parquet", row_group_size=4096)


def train(folder: Path) -> None:
    from stages.corpus.tokens.merges import train
    from stages.corpus.tokens.vocabulary import save_tokenizer

    save_tokenizer(train(folder / "all.parquet", VOCABULARY), folder / PLACE / "out" / "tokenizer")


def encode(folder: Path) -> None:
    """Documents on disk to tokens on disk, as the stage pack does it."""
    from stages.contract import Progress
    from stages.corpus.reading.batches import count
    from stages.pack import tokenize

    os.chdir(folder / PLACE)
    shutil.rmtree("tokens", ignore_errors=True)
    documents = folder / "all.parquet"
    _, sizes = tokenize(documents, Path("tokens"), Progress("encode", total=count(documents), unit="documents"))
    print(json.dumps({"tokens": int(sizes.sum()), "documents": len(sizes)}))


def compare(folder: Path) -> None:
    """Whether merges are those of Hugging Face's trainer, and every document's ids those in datatrove's stream."""
    import numpy as np
    import orjson
    import pyarrow.parquet as pq

    from stages.corpus.tokens.token_store import document_lengths

    files = (folder / PLACE / "out" / "tokenizer" / "tokenizer.json", folder / "hf.json")
    merges = [json.loads(path.read_text(encoding="utf-8"))["model"]["merges"] for path in files]
    ends = np.cumsum(document_lengths(folder / PLACE / "tokens"))
    tokens = np.fromfile(folder / PLACE / "tokens" / "tokens.bin", np.uint16)
    rows = {name: k for k, name in enumerate(pq.read_table(folder / "all.parquet", columns=["id"])["id"].to_pylist())}
    (stream,) = (folder / "datatrove-stream").glob("*.ds")
    theirs = np.fromfile(stream, np.uint16)
    bounds = np.fromfile(stream.with_suffix(".ds.index"), np.uint64).astype(np.int64)
    names = (orjson.loads(line)["id"] for path in sorted((folder / "docs").iterdir()) for line in path.open("rb"))
    begin = differ = 0
    for name, end in zip(names, bounds, strict=True):
        k = rows[name]
        ours = tokens[(ends[k - 1] if k else 0) : ends[k]]
        differ += not np.array_equal(ours[1:], theirs[begin:end])  # ours has a mark before each document too
        begin = end
    print(json.dumps({"merges": len(merges[0]), "same": merges[0] == merges[1], "documents": len(rows),
                      "differ": differ, "tokens": len(theirs)}))  # fmt: skip


def dataset(folder: Path) -> None:
    """The same tokens as TRL takes them."""
    import numpy as np
    import pyarrow as pa
    from datasets import Dataset

    from stages.corpus.tokens.token_store import document_lengths

    tokens = np.fromfile(folder / PLACE / "tokens" / "tokens.bin", np.uint16).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(document_lengths(folder / PLACE / "tokens"))])
    column = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(tokens))
    Dataset(pa.table({"input_ids": column})).save_to_disk(str(folder / "tokens.arrow"))


def pack(folder: Path) -> None:
    """CPU-seconds of packing tokens that are in memory, and tokens that lie on disk; kernels are loaded before."""
    import numpy as np

    from stages.corpus.tokens.packed_rows import load_rows
    from stages.corpus.tokens.packing import arrange, pack, save_packed
    from stages.corpus.tokens.token_store import document_lengths
    from stages.corpus.tokens.vocabulary import PAD, load_vocabulary

    pad = load_vocabulary(folder / PLACE / "out" / "tokenizer")[PAD]
    file = folder / PLACE / "tokens" / "tokens.bin"
    tokens, sizes = np.fromfile(file, np.uint16), document_lengths(folder / PLACE / "tokens")
    few = sizes[:100]
    pack(tokens[: few.sum()], few, ROW, pad, 0)
    save_packed(folder / PLACE / "few", file, np.uint16, arrange(few, ROW, 0), ROW, pad)
    begin = time.process_time()
    rows = pack(tokens, sizes, ROW, pad, 0)
    memory = time.process_time() - begin
    begin = time.process_time()
    save_packed(folder / PLACE / "rows", file, np.uint16, arrange(sizes, ROW, 0), ROW, pad)
    disk = time.process_time() - begin
    kept = np.bincount(rows.tokens.reshape(-1), minlength=VOCABULARY)
    padding = rows.tokens.size - int(rows.filled.sum())
    kept[pad] -= padding
    print(json.dumps({
        "tokens": len(tokens), "memory": memory, "disk": disk, "rows": len(rows.tokens),
        "filled": 1 - padding / rows.tokens.size,
        "lost": int(np.abs(kept - np.bincount(tokens, minlength=VOCABULARY)).sum()),
        "same": bool(np.array_equal(load_rows(folder / PLACE / "rows").tokens, rows.tokens)),
    }))  # fmt: skip


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]).absolute())
