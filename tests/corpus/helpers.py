"""Small things several tests of this folder need."""

from collections.abc import Iterable
from pathlib import Path

import orjson
import pyarrow as pa

from stages.contract.params import Source
from stages.contract.run import Run
from stages.contract.tracking.spool import NoSpool


def source(path: Path, files: str = "**/*") -> Source:
    return Source(path=str(path), files=files)


def jsonl(path: Path, records: Iterable) -> Path:
    """Objects as JSON lines; bytes go in as they are."""
    lines = [record if isinstance(record, bytes) else orjson.dumps(record) for record in records]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def table(texts: Iterable[str]) -> pa.Table:
    texts = list(texts)
    ids = [f"d{k:05}" for k in range(len(texts))]
    columns = {"id": ids, "text": texts, "source": ["test"] * len(texts)}
    return pa.table({name: pa.array(column, pa.large_string()) for name, column in columns.items()})


def stage_run(stage: str, params, root: Path) -> Run:
    """What a stage's main gets in the folder ``root``, the current one, without DVC and tracking."""
    folders = [Path(top) / stage for top in ("out", "reports", "scratch")]
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
    return Run(stage, params, *folders, NoSpool())
