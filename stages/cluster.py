"""Where one machine is outgrown: the parts of dedup, filter and pack by datatrove's executors, on many.

    python -m stages.cluster STAGE [--executor local|slurm|ray] [--tasks N] [--workers N] [--option KEY=VALUE ...]

What the stage would make in its scratch folder is made there by tasks: shards of the documents and then what each band
of the signatures links (dedup), parts judged (filter), documents encoded (pack). `dvc repro STAGE` goes on from there,
with the same bytes in the end as without. Every machine must see the repository and DVC's cache at the same paths.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stages.contract.errors import UserError
from stages.contract.params import Params, load_params

TASKS_LOGS = "tasks"  # beside what they make


@dataclass(frozen=True)
class Step:
    """A step of datatrove's: ``work(params, scratch, rank, tasks)`` in the folder ``root``."""

    work: Callable[[Params, Path, int, int], None]
    params: Params
    root: Path
    scratch: Path

    def __call__(self, data, rank: int, world_size: int) -> None:
        os.chdir(self.root)
        self.work(self.params, self.scratch, rank, world_size)


def shards(params: Params, scratch: Path, rank: int, tasks: int) -> None:
    """Every so manieth of dedup's units of files as shards."""
    from stages.corpus.collection import room_in
    from stages.corpus.records import source_files
    from stages.corpus.shards import make_shards, units

    room = room_in(params.dedup.memory_gib)
    mine = units(source_files(params.data.pretrain), room, scratch / "shards")[rank::tasks]
    make_shards(mine, params.dedup, room)


def bands(params: Params, scratch: Path, rank: int, tasks: int) -> None:
    """What every so manieth band links."""
    from stages.corpus.bands import save_bands
    from stages.corpus.collection import collect, room_in
    from stages.corpus.duplicates import at_once
    from stages.corpus.kept import read_known
    from stages.corpus.records import source_files
    from stages.corpus.shards import make_shards, units

    if not (mine := range(params.dedup.bands)[rank::tasks]):
        return
    room = room_in(params.dedup.memory_gib)
    work = units(source_files(params.data.pretrain), room, scratch / "shards")
    known = scratch / f"known-{rank}"
    corpus = collect(make_shards(work, params.dedup, room), read_known(params.dedup, known), room)
    save_bands(corpus, mine, params.dedup, at_once(room, params.dedup), scratch / "bands")
    shutil.rmtree(known, ignore_errors=True)


def parts(params: Params, scratch: Path, rank: int, tasks: int) -> None:
    """Every so manieth of filter's parts, judged."""
    from stages.corpus.parts import judge_parts, sizes
    from stages.filter import DOCUMENTS, prepare

    judge_parts(DOCUMENTS, range(len(sizes(DOCUMENTS)))[rank::tasks], prepare(params).judge, scratch / "parts")


def tokens(params: Params, scratch: Path, rank: int, tasks: int) -> None:
    """The tokens of every so manieth row group that pack reads."""
    import pyarrow.parquet as pq

    from stages.corpus.aside import aside
    from stages.corpus.batches import batches
    from stages.corpus.tokens import append, begin
    from stages.pack import DOCUMENTS, tokeniser

    dtype, framed_tokens = tokeniser(DOCUMENTS)
    with pq.ParquetFile(DOCUMENTS) as file:
        for number in range(file.num_row_groups)[rank::tasks]:
            if not (target := scratch / "encoded" / f"{number:06}").exists():
                with aside(target) as folder:
                    begin(folder, dtype)
                    for batch in batches(file.read_row_group(number, ["text"]), ["text"]):
                        append(folder, *framed_tokens(batch["text"].to_pylist()))


def joined(params: Params, scratch: Path, rank: int, tasks: int) -> None:
    """All those tokens one after another, where pack looks for them; by the first of the tasks."""
    import numpy as np

    from stages.corpus.tokens import append, begin, lengths
    from stages.pack import DOCUMENTS, tokeniser

    if rank == 0:
        dtype, _ = tokeniser(DOCUMENTS)
        shutil.rmtree(scratch / "train", ignore_errors=True)
        begin(scratch / "train", dtype)
        for part in sorted((scratch / "encoded").iterdir()):
            append(scratch / "train", np.fromfile(part / "tokens.bin", dtype), lengths(part))


# What comes first is done before the next begins.
STEPS = {"dedup": (shards, bands), "filter": (parts,), "pack": (tokens, joined)}
# What is stated elsewhere, or must be as it is.
STATED = {"tasks": "write --tasks N", "workers": "write --workers N"} | dict.fromkeys(
    ("pipeline", "logging_dir", "skip_completed", "depends"), "that is for this program to say"
)


def run(stage: str, params: Params, scratch: Path, executor: type, tasks: int, **options) -> None:
    """The STEPS of ``stage`` for the repository in the current folder.

    Args:
        scratch: the stage's, of this identity.
        executor: one of datatrove's.
        options: its arguments.
    """
    last = None
    for work in STEPS[stage]:
        step = Step(work, params, Path.cwd(), scratch)
        logs = str(scratch / TASKS_LOGS / work.__name__)
        # What is there is known by what was made, not by datatrove's notes, which are of so many tasks.
        last = executor([step], tasks=tasks, logging_dir=logs, skip_completed=False, depends=last, **options)
    last.run()


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done (slurm: submitted), 1 not."""
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
    from stages.contract.identity import identify
    from stages.contract.run import locked_scratch

    stage, options = arguments.stage, _options(arguments.option)
    if arguments.tasks < 1:
        raise UserError(f"--tasks is {arguments.tasks}; it must be 1 or more.")
    executor = _executor(arguments.executor)
    if arguments.executor == "slurm":
        code, programs = Path(__file__).resolve().parents[1], Path(sys.executable).parent
        options = {"env_command": f"export PYTHONPATH={code} PATH={programs}:$PATH"} | options
    with locked_scratch(identify(stage, Path.cwd())) as scratch:
        try:
            run(stage, load_params(), scratch, executor, arguments.tasks, workers=arguments.workers, **options)
        except TypeError as e:
            if "__init__" not in str(e):
                raise
            raise UserError(f"--option: {str(e).split('__init__() ')[-1]} (datatrove's {executor.__name__}).") from None
        except ImportError as e:  # datatrove names the package that its executor needs
            raise UserError(f"--executor {arguments.executor}: {e}") from None
    when = "When the jobs have ended, go on" if arguments.executor == "slurm" else "Go on"
    print(f"{when} from here with: dvc repro {stage}")


def _executor(name: str) -> type:
    try:
        from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
    except ImportError:
        raise UserError("datatrove is not installed: uv pip install 'datatrove>=0.10,<0.11'.") from None
    return {"local": LocalPipelineExecutor, "slurm": SlurmPipelineExecutor, "ray": RayPipelineExecutor}[name]


def _options(given: list[str]) -> dict:
    """KEY=VALUE with values as YAML has them, but for times of day."""
    from ruamel.yaml import YAML, YAMLError

    found = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise UserError(f"--option {text}: it must be KEY=VALUE.")
        if key in STATED:
            raise UserError(f"--option {text}: {STATED[key]}.")
        try:
            found[key] = value if ":" in value else YAML(typ="safe").load(value)
        except YAMLError:
            raise UserError(f"--option {text}: the value is not YAML.") from None
    return found


if __name__ == "__main__":
    from stages.cluster import main  # so that tasks find their steps in a module

    sys.exit(main())
