"""The data stages: share of duplicates, positions that packing saves, time that packing takes."""

import json
import statistics
import tempfile
import time
from importlib import import_module
from pathlib import Path

import numpy as np

from stages.contract.errors import UserError
from stages.contract.params import load_params
from verdict.claims import Claim
from verdict.measuring.intervals import Measured, exact, median_interval
from verdict.measuring.setting import Setting
from verdict.measuring.steps import prepared

REPEATS = 7
PADDED_ROWS = 8  # of a batch without packing, padded to its longest document


def dedup_share(claim: Claim, setting: Setting) -> Measured:
    """Measure the share of documents that the stage dedup drops of data.pretrain, in folders of its own."""
    from stages.contract import Run
    from stages.contract.tracking.spool import NoSpool

    with tempfile.TemporaryDirectory() as name:
        out, reports, scratch = (Path(name) / part for part in ("out", "reports", "scratch"))
        for folder in (out, reports, scratch):
            folder.mkdir()
        import_module("stages.dedup").main(Run("dedup", load_params(), out, reports, scratch, NoSpool()))
        figures: dict[str, int] = json.loads((reports / "metrics.json").read_text(encoding="utf-8"))
    before, after = figures["documents_in"], figures["documents_out"]
    return exact(1 - after / before, documents=[before, after], bytes=[figures["bytes_in"], figures["bytes_out"]])


def packing_positions(claim: Claim, setting: Setting) -> Measured:
    """Count real tokens a position in packed rows, over those of batches padded to their longest document.

    A document that packing cut counts as its parts, which are shorter: the gain is counted too low, if at all.
    """
    lengths, filled, row_tokens = _lengths(setting)
    packed = filled.sum() / (len(filled) * row_tokens)
    order = np.random.default_rng(0).permutation(len(lengths))
    batches = [lengths[some] for some in np.array_split(order, max(1, len(order) // PADDED_ROWS))]
    padded = lengths.sum() / sum(len(batch) * batch.max() for batch in batches)
    return exact(
        float(packed / padded), filled=[float(padded), float(packed)], documents=len(lengths),
        mean_tokens=float(lengths.mean()), row_tokens=row_tokens,
    )  # fmt: skip


def packing_rate(claim: Claim, setting: Setting) -> Measured:
    """Measure the seconds of packing over those of training on the same tokens."""
    from stages.corpus.tokens.packing import pack

    lengths, _, row_tokens = _lengths(setting)
    tokens = np.zeros(lengths.sum(), np.uint16)
    pack(tokens, lengths, row_tokens, 0, 0)  # compiles
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        pack(tokens, lengths, row_tokens, 0, 0)
        seconds.append(time.perf_counter() - began)
    training, _ = prepared(setting, setting.narrow, {})
    step = statistics.median(sum(training.step()) for _ in range(REPEATS))
    whole = len(tokens) / setting.narrow.tokens * step
    return median_interval(
        [s / whole for s in seconds], tokens_per_second=[len(tokens) / statistics.median(seconds), len(tokens) / whole]
    )


def _lengths(setting: Setting) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the tokens of each document or part of one, those of each row, and a row's positions."""
    folder = setting.rows / "train"
    if not (folder / "cu_seqlens.npy").exists():
        raise UserError(f"{folder} holds no packed rows. Make them: dvc repro pack, or name a folder: --rows FOLDER.")
    ends, filled = (np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("cu_seqlens", "filled"))
    row_tokens = int(ends[0, -1])
    parts = np.diff(np.minimum(ends, filled[:, None]), axis=1).ravel()
    return parts[parts > 0].astype(np.int64), filled.astype(np.int64), row_tokens
