"""Our side of benchmarks.data: the stages as they are, without DVC's and the tracker's bookkeeping, in folders of their
own under a corpus; and parts of them that a peer does by itself: python -m benchmarks.data_ours NAME FOLDER.
"""

import json
import os
import shutil
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VOCABULARY, ROW = 32_768, 2048


def place(folder: Path, name: str, documents: Path | None = None) -> Path:
    """A folder for stages, with the params of the benchmark; ``documents`` are those that a stage before it wrote."""
    from ruamel.yaml import YAML

    yaml, work = YAML(), folder / name
    params = yaml.load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for source in params["data"].values():
        source["path"] = str(ROOT / source["path"])
    params["data"]["pretrain"] = {"path": str(folder / "docs"), "files": "*.jsonl"}
    params["init"] = "none"
    params["dedup"].update(ngram=5, permutations=112, bands=14, threshold=0.0, against="none")  # no verification
    params["filter"].update(
        definitions="published", min_language_score=0, min_words=50, min_alphabetic_words=0.8, max_contamination=1.0
    )  # datatrove's defaults
    params["filter"]["c4"]["apply"] = params["filter"]["fineweb"]["apply"] = True
    params["tokenizer"]["vocab_size"], params["pack"]["row_tokens"] = VOCABULARY, ROW
    work.mkdir(exist_ok=True)
    with (work / "params.yaml").open("w", encoding="utf-8") as f:
        yaml.dump(params, f)
    for stage in ("dedup", "filter") if documents else ():
        path = work / "out" / stage / "documents.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(documents)
    return work


def table(folder: Path) -> None:
    """all.parquet: the documents as a stage writes them, in order of id, in row groups."""
    import orjson
    import pyarrow as pa
    import pyarrow.parquet as pq

    records = [orjson.loads(line) for path in sorted((folder / "docs").iterdir()) for line in path.open("rb")]
    records.sort(key=lambda record: record["id"])
    columns = [pa.array([r[k] for r in records], pa.large_string()) for k in ("id", "text", "source")]
    pq.write_table(pa.table(columns, ["id", "text", "source"]), folder / "all.parquet", row_group_size=4096)


def train(folder: Path) -> None:
    from stages.corpus.merges import train
    from stages.corpus.vocabulary import save

    out = folder / "ours" / "out" / "tokenizer"
    save(train(folder / "all.parquet", VOCABULARY), out)


def encode(folder: Path) -> None:
    """Documents on disk to tokens on disk, as the stage pack does it."""
    from stages.contract import Progress
    from stages.corpus.batches import count
    from stages.pack import tokenise

    os.chdir(folder / "ours")
    shutil.rmtree("tokens", ignore_errors=True)
    documents = folder / "all.parquet"
    _, lengths = tokenise(documents, Path("tokens"), Progress("encode", total=count(documents), unit="documents"))
    print(json.dumps({"tokens": int(lengths.sum()), "documents": len(lengths)}))


def dataset(folder: Path) -> None:
    """The same tokens as TRL takes them."""
    import numpy as np
    import pyarrow as pa
    from datasets import Dataset

    from stages.corpus.tokens import lengths

    tokens = np.fromfile(folder / "ours" / "tokens" / "tokens.bin", np.uint16).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths(folder / "ours" / "tokens"))])
    column = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(tokens))
    Dataset(pa.table({"input_ids": column})).save_to_disk(str(folder / "tokens.arrow"))


def pack(folder: Path) -> None:
    """CPU-seconds of packing tokens that are in memory, and tokens that lie on disk; kernels are compiled before."""
    import numpy as np

    from stages.corpus.packing import arrange, load_rows, pack, save_packed
    from stages.corpus.tokens import lengths

    file = folder / "ours" / "tokens" / "tokens.bin"
    tokens, sizes = np.fromfile(file, np.uint16), lengths(folder / "ours" / "tokens")
    few = sizes[:100]
    pack(tokens[: few.sum()], few, ROW, 1, 0)
    save_packed(folder / "ours" / "few", file, np.uint16, arrange(few, ROW, 0), ROW, 1)
    begin = time.process_time()
    rows = pack(tokens, sizes, ROW, 1, 0)
    memory = time.process_time() - begin
    begin = time.process_time()
    save_packed(folder / "ours" / "rows", file, np.uint16, arrange(sizes, ROW, 0), ROW, 1)
    disk = time.process_time() - begin
    kept = np.bincount(rows.tokens.reshape(-1), minlength=VOCABULARY)
    kept[1] -= rows.tokens.size - int(rows.filled.sum())  # padding
    same = np.array_equal(load_rows(folder / "ours" / "rows").tokens, rows.tokens)
    print(json.dumps({
        "memory": memory, "disk": disk, "rows": len(rows.tokens), "same": same,
        "filled": int(rows.filled.sum()) / rows.tokens.size,
        "lost": int(np.abs(kept - np.bincount(tokens, minlength=VOCABULARY)).sum()),
    }))  # fmt: skip


def compare(folder: Path) -> None:
    """Whether merges and ids are those of Hugging Face's tokenizers, the ids over 2,000 documents."""
    import numpy as np
    import pyarrow.parquet as pq
    from tokenizers import Tokenizer

    from stages.corpus.tokens import lengths

    mine = folder / "ours" / "out" / "tokenizer" / "tokenizer.json"
    merges = [json.loads(path.read_text())["model"]["merges"] for path in (mine, folder / "hf.json")]
    texts = next(pq.ParquetFile(folder / "all.parquet").iter_batches(2000, columns=["text"]))["text"].to_pylist()
    tokenizer = Tokenizer.from_file(str(mine))
    mark = tokenizer.token_to_id("<|endoftext|>")
    encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    expected = np.concatenate([[mark, *found.ids, mark] for found in encoded])
    sizes = lengths(folder / "ours" / "tokens")[: len(texts)]
    found = np.fromfile(folder / "ours" / "tokens" / "tokens.bin", np.uint16, int(sizes.sum()))
    print(
        json.dumps({"merges": merges[0] == merges[1], "count": len(merges[0]), "ids": np.array_equal(found, expected)})
    )


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]).absolute())
