"""What a stage's trainer has logged, read as it is written (stages.contract.spool)."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

from stages.contract import places


class Curve:
    """The metric ``name`` of ``stage``, step by step; of pipeline ``pipeline`` only, if one is named."""

    def __init__(self, root: Path, stage: str, name: str, pipeline: str | None = None):
        self.folder, self.pattern = places.spools(places.home(root)), f"{stage}-*/metrics.jsonl"
        self.name, self.pipeline = name, pipeline
        self.began = time.time()
        self.offsets: dict[Path, int] = {}
        self.names: set[str] = set()  # of all that was read, this one's and others

    def news(self) -> Iterator[tuple[int, float]]:
        """Step and value of what was logged since the last call."""
        for path in self.folder.glob(self.pattern):
            with contextlib.suppress(OSError, ValueError):  # shipped meanwhile, or a line half written
                if path.stat().st_mtime >= self.began and self._ours(path):
                    yield from self._read(path)

    def _ours(self, path: Path) -> bool:
        if self.pipeline is None or path in self.offsets:
            return True
        return json.loads(path.with_name("run.json").read_text(encoding="utf-8"))["pipeline"] == self.pipeline

    def _read(self, path: Path) -> Iterator[tuple[int, float]]:
        with path.open(encoding="utf-8") as file:
            file.seek(self.offsets.get(path, 0))
            while (line := file.readline()).endswith("\n"):
                self.offsets[path] = file.tell()
                point = json.loads(line)
                self.names |= point["m"].keys()
                if self.name in point["m"]:
                    yield point["s"], point["m"][self.name]
