"""Run the parts of dedup, filter and pack on many machines, by datatrove's executors.

    python -m stages.cluster STAGE [--executor local|slurm|ray] [--tasks N] [--workers N] [--option KEY=VALUE ...]

Tasks fill the stage's scratch folder: shards and each band's links (dedup), judged parts (filter), encoded documents
(pack). `dvc repro STAGE` resumes from there and ends with the same bytes. Every machine must see the repository and
DVC's cache at the same paths.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.contract.errors import UserError
from stages.contract.params import Params

if TYPE_CHECKING:
    from datatrove.data import DocumentsPipeline
    from datatrove.executor.base import PipelineExecutor

TASKS_LOGS = "tasks"  # in the scratch folder


@dataclass(frozen=True)
class ClusterStep:
    """Call ``work(params, scratch, rank, tasks)`` in the folder ``root``, as a step of datatrove's."""

    work: Callable[[Params, Path, int, int], None]
    params: Params
    root: Path
    scratch: Path

    def __call__(self, data: "DocumentsPipeline", rank: int, world_size: int) -> None:
        os.chdir(self.root)
        self.work(self.params, self.scratch, rank, world_size)


def shards(params: Params, scratch: Path, rank: int, tasks: int) -> None:
    """Make shards of every ``tasks``-th unit of dedup's files."""
    from stages.corpus.dedup.collection import room_in
    from stages.corpus.dedup.shards import make_shards, units

    room = room_in(params.dedup.memory_gib)
    mine = units(params.data.pretrain, room, scratch / "shards")[rank::tasks]
    make_shards(mine, params.dedup, room)


def bands(params: Params, scratch: Path, rank: int, tasks: int) -> None:
    """Save the links of every ``tasks``-th band."""
    from stages.corpus.dedup.bands import save_bands
    from stages.corpus.dedup.collection import collect, room_in
    from stages.corpus.dedup.duplicates import at_once
    from stages.corpus.dedup.kept import read_known
    from stages.corpus.dedup.shards import make_shards, units

    if not (mine := range(params.dedup.bands)[rank::tasks]):
        return
    room = room_in(params.dedup.memory_gib)
    work = units(params.data.pretrain, room, scratch / "shards")
    known = scratch / f"known-{rank}"
    corpus = collect(make_shards(work, params.dedup, room), read_known(params.dedup, known), room)
    save_bands(corpus, mine, params.dedup, at_once(room, params.dedup), scratch / "bands")
    shutil.rmtree(known, ignore_errors=True)


def parts(params: Params, scratch: Path, rank: int, tasks: int) -> None:
    """Judge every ``tasks``-th part of filter."""
    from stages.corpus.filtering.parts import judge_parts, sizes
    from stages.filter import DOCUMENTS, filter_inputs

    judge_parts(DOCUMENTS, range(len(sizes(DOCUMENTS)))[rank::tasks], filter_inputs(params).judge, scratch / "parts")


def tokens(params: Params, scratch: Path, rank: int, tasks: int) -> None:
    """Encode every ``tasks``-th row group that pack reads."""
    import pyarrow.parquet as pq

    from stages.corpus.reading.aside import aside, intact
    from stages.corpus.reading.batches import batches
    from stages.corpus.tokens.token_store import append, begin_store
    from stages.pack import DOCUMENTS, document_encoder

    dtype, framed_tokens = document_encoder(DOCUMENTS)
    with pq.ParquetFile(DOCUMENTS) as file:
        for number in range(file.num_row_groups)[rank::tasks]:
            if not intact(target := scratch / "encoded" / f"{number:06}"):
                with aside(target) as folder:
                    begin_store(folder, dtype)
                    for batch in batches(file.read_row_group(number, ["text"]), ["text"]):
                        append(folder, *framed_tokens(batch["text"].to_pylist()))


def joined(params: Params, scratch: Path, rank: int, tasks: int) -> None:
    """Join the encoded row groups in order, where pack looks for them; the first task does it."""
    import numpy as np

    from stages.corpus.tokens.token_store import append, begin_store, document_lengths
    from stages.pack import DOCUMENTS, document_encoder

    if rank == 0:
        dtype, _ = document_encoder(DOCUMENTS)
        shutil.rmtree(scratch / "train", ignore_errors=True)
        begin_store(scratch / "train", dtype)
        for part in sorted((scratch / "encoded").iterdir()):
            append(scratch / "train", np.fromfile(part / "tokens.bin", dtype), document_lengths(part))


# A step begins when the one before is done.
STEPS = {"dedup": (shards, bands), "filter": (parts,), "pack": (tokens, joined)}
# Options that have a switch of their own, or that this program sets.
STATED = {"tasks": "write --tasks N", "workers": "write --workers N"} | dict.fromkeys(
    ("pipeline", "logging_dir", "skip_completed", "depends"), "that is for this program to say"
)


def run_tasks(
    stage: str, params: Params, scratch: Path, executor: "type[PipelineExecutor]", tasks: int, **options: Any
) -> None:
    """Run the STEPS of ``stage`` for the repository in the current folder.

    Args:
        scratch: the stage's, of this identity.
        executor: one of datatrove's.
        options: its arguments.
    """
    last: PipelineExecutor | None = None
    for work in STEPS[stage]:
        step = ClusterStep(work, params, Path.cwd(), scratch)
        logs = str(scratch / TASKS_LOGS / work.__name__)
        # The scratch folder shows which parts exist; datatrove's notes hold for one number of tasks only.
        last = executor([step], tasks=tasks, logging_dir=logs, skip_completed=False, depends=last, **options)
    assert last is not None
    last.run()


def main(argv: list[str] | None = None) -> int:
    """Return the exit code: 0 done (slurm: submitted), 1 failed."""
    arguments = _arguments(argv)
    try:
        _main(arguments)
    except UserError as e:
        print("\n".join(f"error: {line}" for line in str(e).splitlines()), file=sys.stderr)
        return 1
    return 0


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stages.cluster", description=__doc__.split("\n")[0])
    parser.add_argument("stage", choices=STEPS)
    parser.add_argument("--executor", choices=("local", "slurm", "ray"), default="local")
    parser.add_argument("--tasks", type=int, default=len(os.sched_getaffinity(0)), metavar="N")
    parser.add_argument("--workers", type=int, default=-1, metavar="N", help="tasks at a time (default: all)")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of datatrove's executor: --option partition=cpu --option time=04:00:00 --option cpus_per_task=8",
    )
    return parser.parse_args(argv)


def _main(arguments: argparse.Namespace) -> None:
    from stages.contract import snapshot
    from stages.contract.scratch import inherit, locked_scratch

    stage, options = arguments.stage, _options(arguments.option)
    if arguments.tasks < 1:
        raise UserError(f"--tasks is {arguments.tasks}; it must be 1 or more.")
    executor = _executor(arguments.executor)
    if arguments.executor == "slurm":
        code, programs = Path(__file__).resolve().parents[2], Path(sys.executable).parent
        options = {"env_command": f"export PYTHONPATH={code} PATH={programs}:$PATH"} | options
    taken = snapshot.take(stage, Path.cwd())
    with locked_scratch(taken.identity) as scratch:
        inherit(scratch, taken.root, taken.stamps)
        try:
            with snapshot.unchanged(taken, scratch):
                run_tasks(stage, taken.params, scratch, executor, arguments.tasks, workers=arguments.workers, **options)
        except TypeError as e:
            if "__init__" not in str(e):
                raise
            raise UserError(f"--option: {str(e).split('__init__() ')[-1]} (datatrove's {executor.__name__}).") from None
        except ImportError as e:  # datatrove names the package that its executor needs
            raise UserError(f"--executor {arguments.executor}: {e}") from None
    when = "When the jobs have ended, go on" if arguments.executor == "slurm" else "Go on"
    print(f"{when} from here with: dvc repro {stage}")


def _executor(name: str) -> "type[PipelineExecutor]":
    try:
        from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
    except ImportError:
        raise UserError("datatrove is not installed: uv pip install 'datatrove>=0.10,<0.11'.") from None
    return {"local": LocalPipelineExecutor, "slurm": SlurmPipelineExecutor, "ray": RayPipelineExecutor}[name]


def _options(texts: list[str]) -> dict[str, Any]:
    """Return the values of KEY=VALUE texts, read as YAML; a time of day (04:00:00) stays text."""
    from stages.contract.yaml_file import parse_yaml

    options = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise UserError(f"--option {text}: it must be KEY=VALUE.")
        if key in STATED:
            raise UserError(f"--option {text}: {STATED[key]}.")
        try:
            options[key] = value if ":" in value else parse_yaml(value, "--option")
        except UserError:
            raise UserError(f"--option {text}: the value is not YAML.") from None
    return options
