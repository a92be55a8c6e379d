"""Small things several tests of this folder need."""

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import orjson
import pyarrow as pa

from stages.contract.params import Source


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


def stage_run(stage: str, params, root: Path) -> SimpleNamespace:
    """What a stage's main gets, without DVC and tracking."""
    out, reports, scratch = (Path(top) / stage for top in ("out", "reports", "scratch"))
    for folder in (out, reports, scratch):
        (root / folder).mkdir(parents=True, exist_ok=True)

    def report(metrics: dict, headline: tuple[str, ...] = ()) -> None:
        (root / reports / "metrics.json").write_bytes(
            orjson.dumps(metrics, option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2)
        )

    return SimpleNamespace(stage=stage, params=params, out=out, reports=reports, scratch=scratch, report=report)
