"""Checkpoint folders on disk: sealed by a manifest, verified against it, counted and pruned.

A manifest holds the size and sha256 of every file, a seal the sha256 of the manifest. Other files of the scratch folder
may be foreign or damaged: nothing here raises for them.
"""

import hashlib
import json
import re
from pathlib import Path

from stages.contract import disk
from stages.contract.files import remove, replace_folder
from stages.contract.tracking import locations

KEEP = 2
MANIFEST, SEAL = "manifest.json", "manifest.sha256"
NAME = re.compile(r"checkpoint-([1-9][0-9]{0,14})")
# Weights as transformers, FSDP and DeepSpeed write them.
MODEL = re.compile(r"[^/]+\.safetensors|pytorch_model_fsdp_\d+/.+|global_step\d+/.+")


def step_number(folder: Path) -> int:
    """Return N of checkpoint-N; 0 for another name."""
    match = NAME.fullmatch(folder.name)
    return int(match[1]) if match else 0


def numbered(scratch: Path) -> list[Path]:
    """Return the checkpoint-N folders, highest N first."""
    return sorted(
        (p for p in scratch.glob("checkpoint-*") if step_number(p) and p.is_dir()), key=step_number, reverse=True
    )


def seal(folder: Path) -> None:
    """Add manifest and seal to ``folder``, and sync every file to disk."""
    disk.honor_umask(folder)
    manifest = {}
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        manifest[str(file.relative_to(folder))] = [file.stat().st_size, _sha256(file)]
        disk.sync(file)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    (folder / SEAL).write_text(_sha256(folder / MANIFEST))
    for name in (MANIFEST, SEAL):
        disk.sync(folder / name)


def publish(written: Path, scratch: Path) -> Path:
    """Seal the checkpoint ``written`` and move it to ``scratch`` in one rename.

    Damaged checkpoints of later steps are removed: training did not resume from them, and by their number they would
    count as the newest.
    """
    seal(written)
    target = scratch / written.name
    replace_folder(written, target)
    for stale in numbered(scratch):
        if step_number(stale) > step_number(target) and (wrong := damage(stale)):
            print(f"{stale.name} is damaged ({wrong}) and removed", flush=True)
            remove(stale)
    return target


def prune(scratch: Path, keep: int = KEEP) -> None:
    """Remove all but the newest ``keep`` whole checkpoints; a damaged one does not count.

    Sizes alone are compared here: reading gigabytes again for their hashes would stop the training.
    """
    if locations.keep_checkpoints():
        return
    whole = 0
    for folder in numbered(scratch):
        wrong = damage(folder, hashes=False)
        whole += not wrong
        if wrong:
            print(f"{folder.name} is damaged ({wrong}) and removed", flush=True)
        if wrong or whole > keep:
            remove(folder)


def damage(folder: Path, hashes: bool = True) -> str:
    """Return what is wrong with a sealed folder; "" if every file is as it was written.

    Args:
        folder: path of a checkpoint's name, of any kind.
        hashes: compare contents too, not sizes alone.
    """
    try:
        if not (folder / SEAL).is_file() or not (folder / MANIFEST).is_file():
            return "no readable manifest"
        if (folder / SEAL).read_bytes() != _sha256(folder / MANIFEST).encode():
            return "no readable manifest"
        manifest = json.loads((folder / MANIFEST).read_text())
        different = next((n for n, entry in manifest.items() if not _matches(folder / n, hashes, *entry)), "")
        unlisted = _files(folder) - manifest.keys()
    except OSError as e:
        return f"it cannot be read: {e.strerror}"
    except (ValueError, TypeError, AttributeError):  # sealed, and not what `publish` writes
        return "no readable manifest"
    if different:
        return f"{different} differs from its manifest"
    if unlisted:
        return f"{min(unlisted)} is not in its manifest"
    return "" if any(MODEL.fullmatch(name) for name in manifest) else "its manifest lists no model"


def _files(folder: Path) -> set[str]:
    """Return the names of the files in ``folder``, without manifest, seal and hidden files, which NFS makes."""
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir() and p.name[0] != "."}
    return files - {MANIFEST, SEAL}


def _matches(file: Path, hashes: bool, size: int, sha256: str) -> bool:
    return file.is_file() and file.stat().st_size == size and (not hashes or _sha256(file) == sha256)


def _sha256(file: Path) -> str:
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
