"""The model card of an export: data, figures, license, and the command that makes the model again."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from flows.retraining.git import git, succeeds
from stages.contract.errors import UserError
from stages.contract.identity import MOST_LOCKED
from stages.contract.params import read_params
from stages.contract.yaml_file import parse_yaml, read_text

MOST_SOURCES = 20
BELONGS = {"pretrain": ("pretrain", "validation"), "sft": ("pretrain", "validation", "sft")}  # data a stage has seen
STEPS = {"pretrain": "pretraining", "sft": "pretraining and supervised fine-tuning"}


def card(folder: Path, name: str, dtype: str, license_id: str, files: list[str]) -> str:
    """Return README.md of an export.

    Args:
        folder: the model that was exported, `out/dpo` for instance.
        name: of the export.
        dtype: of its safetensors.
        license_id: SPDX id, or "" if nobody stated one.
        files: names of its GGUF files.
    """
    made_here = folder.parts[-2:-1] == ("out",) and (folder.parent.parent / "dvc.lock").exists()
    root = folder.resolve().parent.parent
    parts = [
        _front_matter(license_id),
        f"# {name}\n",
        _shape(folder, dtype),
        *([_data(root, folder.name), _figures(root, folder), _origin(root)] if made_here else []),
        _license(license_id, made_here),
        _use(name, files),
    ]
    return "\n".join(part for part in parts if part)


def _front_matter(license_id: str) -> str:
    return f"---\nlicense: {license_id or 'other'}\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n"


def _shape(folder: Path, dtype: str) -> str:
    from stages.trainer.model import models

    shape = models.shape(folder)
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    steps = STEPS.get(folder.name, "pretraining, supervised fine-tuning and preference optimization")
    return (
        f"A {kind} of {shape.parameters:,} parameters after {steps}: {shape.num_hidden_layers} layers, width "
        f"{shape.hidden_size:,}, {shape.vocab_size:,} tokens, context {shape.max_position_embeddings:,}. "
        f"Weights are {dtype}. Made with Verdict.\n"
    )


def _data(root: Path, stage: str) -> str:
    """Return the sources of the training data, with DVC's hashes, and the largest sources of documents."""
    data = read_params(root / "params.yaml")["data"]
    hashes = _hashes(root)
    seen = BELONGS.get(stage, ("pretrain", "validation", "sft", "preferences"))
    rows = [f"| `data.{key}` | `{data[key]['path']}` | {hashes.get(data[key]['path'], '-')} |" for key in seen]
    lines = ["## Data\n", "| source | path | md5 |", "|---|---|---|", *rows, ""]
    if (documents := root / "out/filter/documents.parquet").exists():
        import polars as pl

        counts = pl.scan_parquet(documents).group_by("source").len().sort(["len", "source"], descending=True).collect()
        lines += ["| source of documents | documents |", "|---|---|"]
        lines += [f"| {source} | {count:,} |" for source, count in counts.head(MOST_SOURCES).iter_rows()]
        if counts.height > MOST_SOURCES:
            lines += [f"| {counts.height - MOST_SOURCES:,} more | {counts['len'][MOST_SOURCES:].sum():,} |"]
        lines += [""]
    return "\n".join(lines)


def _hashes(root: Path) -> dict[str, str]:
    """Return path -> md5 of all that stages read, from dvc.lock."""
    lock: dict[str, Any] = parse_yaml(read_text(root / "dvc.lock"), root / "dvc.lock", most=MOST_LOCKED)
    return {dep["path"]: dep["md5"] for stage in lock["stages"].values() for dep in stage.get("deps", [])}


def _figures(root: Path, folder: Path) -> str:
    """Return the closing table, if it was measured on this model."""
    summary = root / "reports/eval/summary.md"
    if not summary.exists() or not is_current(root):
        print(
            f"{folder}: no figures in the card, they are not of this model. `dvc repro eval` measures it.", flush=True
        )
        return ""
    column = {"pretrain": "base"}.get(folder.name, folder.name)
    text = summary.read_text(encoding="utf-8").strip().replace("\n## ", "\n### ").removeprefix("## ")
    return f"## Figures\n\nThis model is the column {column}.\n\n### {text}\n"


def is_current(root: Path) -> bool:
    """Return whether the stage eval of ``root`` is up to date, so that its figures are those of the models there."""
    command = [sys.executable, "-m", "dvc", "status", "-q", "eval"]
    return subprocess.run(command, cwd=root, capture_output=True).returncode == 0


def _origin(root: Path) -> str:
    try:
        commit = git(root, "rev-parse", "HEAD") if succeeds(root, "rev-parse", "-q", "--verify", "HEAD") else ""
        changed = bool(git(root, "status", "--porcelain", "--untracked-files=no")) if commit else True
    except UserError:  # no git here
        commit, changed = "", True
    if not commit or changed:
        print("uncommitted changes: the card cannot say which commit makes this model. Commit, and export again.")
        return "## Make it again\n\n```\nmake run\n```\n\nThe repository had uncommitted changes.\n"
    return f"## Make it again\n\n```\ngit switch --detach {commit}\ndvc pull\nmake run\n```\n"


def _license(license_id: str, made_here: bool) -> str:
    stated = license_id or "Not stated"
    data = " The training data has licenses of its own; see the sources above." if made_here else ""
    return f"## License\n\n{stated}.{data}\n"


def _use(name: str, files: list[str]) -> str:
    lines = ["## Use\n", "```", f"vllm serve {name}", *(f"llama-cli -m {name}/{file}" for file in files), "```", ""]
    return "\n".join(lines)
