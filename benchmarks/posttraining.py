"""SFT and DPO on one GPU beside TRL's: real tokens and pairs a second, and memory, in one call.

    python -m benchmarks.posttraining prepare TOKENIZER CONVERSATIONS PAIRS FOLDER   (a CPU is enough)
    python -m benchmarks.posttraining FOLDER SECTION ...

TOKENIZER: that of `python -m benchmarks.rows`. CONVERSATIONS, PAIRS: as data.sft and data.preferences take them.
SECTION: sft, dpo (374M), wide (1.26B), and toy (of both, the only one for a CPU). Peers run on the same device and
records: TRL's trainers as their defaults have them, and with the best settings its documentation names: SFT packed
(`bfd`), DPO with precomputed reference log-probabilities, both without gradient checkpointing. A peer that runs out of
memory halves its batch. Padding is not counted; speeds are of the median step. DPO is compared a third time where it
may use no more memory than TRL's defaults took, at as many pairs a step.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import PrinterCallback, TrainingArguments

from benchmarks.trainer import WANTED, Clock, arguments, clean, model_of, shape
from stages.contract.params import Dpo, Source
from stages.corpus.chats.conversations import read_conversations, read_preferences
from stages.corpus.chats.encoding import Chats, PairRows, encode_pair, pack_chats, pack_pairs
from stages.corpus.tokens.packed_rows import load_rows, save_rows
from stages.trainer.loop.causal import CausalTrainer
from stages.trainer.loop.rows import PackedRows
from stages.trainer.model import models
from stages.trainer.objectives.preference import PreferenceTrainer, paired, reference_logps
from stages.trainer.plan import hardware, placement, recipe

ROW = 2048
STEPS = 16
PLANNED_WITHIN = 0.96  # of the measured peak, if the plan is to stay under it: plans are within 4 %


def prepare(tokenizer: Path, conversations: str, pairs: str, folder: Path) -> None:
    """Our rows, and the same records as TRL reads them."""
    coder = models.load_tokenizer(tokenizer)
    chats = read_conversations(Source(path=conversations, files="**/*")).train
    records = read_preferences(Source(path=pairs, files="**/*")).train
    encoded = [encode_pair(coder, record, ROW // 2 - 1) for record in records]
    usable = [i for i, pair in enumerate(encoded) if not pair.cut]  # TRL cuts elsewhere
    save_rows(pack_chats(coder, [c["messages"] for c in chats], ROW, 0)[0], folder / "chats")
    save_rows(pack_pairs(coder, [encoded[i] for i in usable], ROW, 0), folder / "pairs")
    (folder / "chats.json").write_text(json.dumps([{"messages": c["messages"]} for c in chats]))
    columns = ("prompt", "chosen", "rejected")
    (folder / "pairs.json").write_text(json.dumps([{c: records[i][c] for c in columns} for i in usable]))
    coder.save_pretrained(folder / "tokenizer")


def resolved(size: str, batch_rows: int, most: float | None = None):
    """The recipe; ``most``: bytes it may use of the device."""
    machine = hardware.detect_hardware()
    return recipe.resolve(replace(machine, memory=most or machine.memory), shape(size, ROW), batch_rows, ROW, WANTED)


def peak() -> int:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


def line(name: str, size: str, rate: float, unit: str, loss: float, seconds: float) -> float:
    step = f"{peak() / 2**30:5.1f} GiB  loss {loss:.4f}  {seconds * 1e3:.0f} ms a step"
    print(f"{name:<44} {size:>5} {rate:>10,.1f} {unit}  {step}", flush=True)
    return rate


def run(trainer, clock) -> tuple[float, float]:
    """(seconds of the median step, first loss)."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(clock)
    trainer.train()
    return clock.seconds, next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)


def options(chosen, steps: int = STEPS) -> TrainingArguments:
    return arguments(chosen.micro_batch, steps, **chosen.arguments() | {"logging_steps": steps // 2})


def ours_sft(folder: Path, size: str, batch_rows: int) -> float:
    clean()
    rows, clock = PackedRows(load_rows(folder / "chats", Chats)), Clock(STEPS // 2)
    chosen = resolved(size, batch_rows)
    trainer = CausalTrainer(model=model_of(size, ROW), recipe=chosen, train_dataset=rows, args=options(chosen))
    seconds, loss = run(trainer, clock)
    tokens = batch_rows * float(np.mean(rows.rows.filled))
    return line(f"ours, packed, {chosen.attention}, {batch_rows} rows", size, tokens / seconds, "tok/s", loss, seconds)


def ours_dpo(folder: Path, size: str, batch_rows: int, most: float | None = None) -> float:
    clean()
    packed, clock = load_rows(folder / "pairs", PairRows), Clock(STEPS // 2)
    chosen = resolved(size, batch_rows, most)
    reference = reference_logps(model_of(size, ROW), PackedRows(packed, limit=batch_rows * (STEPS + 1)), chosen)
    clean()
    rows = paired(PairRows(*(part[: len(reference)] for part in packed)), reference)
    trainer = PreferenceTrainer(
        model_of(size, ROW),
        Dpo.model_construct(loss="sigmoid", beta=0.1),
        recipe=chosen,
        train_dataset=rows,
        args=options(chosen),
    )
    seconds, loss = run(trainer, clock)
    pairs = batch_rows * float(np.mean(packed.pairs[: len(rows)]))
    cut = f" in {chosen.accumulation} parts, checkpointing {chosen.checkpointing}" if most else ""
    name = f"ours, packed, {chosen.attention}, {pairs:.0f} pairs a step{cut}"
    return line(name, size, pairs / seconds, "pairs/s", loss, seconds)


class Counted:
    """A collator that remembers how many tokens it was given, padding left out."""

    def __init__(self, collator):
        self.collator, self.tokens = collator, []

    def __call__(self, examples):
        batch = self.collator(examples)
        mask = batch.get("attention_mask")
        self.tokens.append(int(mask.sum() if mask is not None else batch["input_ids"].numel()))
        return batch


def trl(folder: Path, size: str, kind: str, name: str, batch: int, **extra) -> float:
    """TRL's SFTTrainer ("sft") or DPOTrainer ("dpo") with its defaults but for ``extra``."""
    import trl
    from datasets import Dataset

    clean()
    clock, tokenizer = Clock(STEPS // 2), models.load_tokenizer(folder / "tokenizer")
    records = json.loads((folder / {"sft": "chats.json", "dpo": "pairs.json"}[kind]).read_text())
    config, trainer_class = {
        "sft": (trl.SFTConfig, trl.SFTTrainer), "dpo": (trl.DPOConfig, trl.DPOTrainer),
    }[kind]  # fmt: skip
    chosen = {
        "output_dir": "/tmp/verdict-benchmark", "per_device_train_batch_size": batch, "max_steps": STEPS,
        "logging_steps": STEPS // 2, "save_strategy": "no", "report_to": [], "disable_tqdm": True, "max_length": ROW,
        "learning_rate": 3e-4,
    }  # fmt: skip
    extra |= {"assistant_only_loss": True} if kind == "sft" else {}
    extra |= {} if torch.cuda.is_available() else {"use_cpu": True, "bf16": False}
    peers = {"ref_model": model_of(size, ROW)} if kind == "dpo" and not extra.get("precompute_ref_log_probs") else {}
    try:
        trainer = trainer_class(
            model=model_of(size, ROW), processing_class=tokenizer, train_dataset=Dataset.from_list(records),
            args=config(**chosen | extra), **peers,
        )  # fmt: skip
        trainer.data_collator = Counted(trainer.data_collator)
        seconds, loss = run(trainer, clock)
    except torch.OutOfMemoryError:
        print(f"{name}, {batch} a batch: out of memory", flush=True)
        return trl(folder, size, kind, name, batch // 2, **extra) if batch > 1 else 0.0
    parts = extra.get("gradient_accumulation_steps", 1)
    done = batch * parts if kind == "dpo" else float(np.mean(trainer.data_collator.tokens))
    unit = "pairs/s" if kind == "dpo" else "tok/s"
    return line(f"TRL {trl_version()}, {name}, {batch} x {parts} a step", size, done / seconds, unit, loss, seconds)


def trl_version() -> str:
    from importlib.metadata import version

    return version("trl")


def ratios(ours: float, peers: dict[str, float]) -> None:
    print(
        "ours against " + ", ".join(f"{name}: {ours / rate:.1f}x" for name, rate in peers.items() if rate), flush=True
    )


def sft(folder: Path, size: str = "374m", rows: int = 32, batch: int = 8) -> None:
    best = {"packing": True, "gradient_checkpointing": False}
    ours = ours_sft(folder, size, rows)
    ratios(ours, {
        "defaults": trl(folder, size, "sft", "defaults", batch),
        "bfd packing": trl(folder, size, "sft", "packing", batch, packing=True),
        "bfd packing, no checkpointing": trl(folder, size, "sft", "packing, no checkpointing", batch, **best),
    })  # fmt: skip


def dpo(folder: Path, size: str = "374m", rows: int = 16, batch: int = 8) -> None:
    best = {"precompute_ref_log_probs": True, "gradient_checkpointing": False}
    ours = ours_dpo(folder, size, rows)
    ratios(ours, {
        "defaults": trl(folder, size, "dpo", "defaults", batch),
        "precomputed, no checkpointing": trl(folder, size, "dpo", "precomputed, no checkpointing", batch, **best),
    })  # fmt: skip
    parts = round(rows * float(np.mean(load_rows(folder / "pairs", PairRows).pairs)) / batch)
    same = trl(folder, size, "dpo", "defaults", batch, gradient_accumulation_steps=parts)
    most = PLANNED_WITHIN * peak() / placement.MEMORY_SHARE
    ratios(ours_dpo(folder, size, rows, most or None), {"defaults, as many pairs a step": same})


SECTIONS = {
    "sft": sft,
    "dpo": dpo,
    "wide": lambda folder: sft(folder, "1.26b", 16, 8),
    "toy": lambda folder: [section(folder, "toy", 2, 2) for section in (sft, dpo)],
}


def main() -> None:
    if len(sys.argv) == 6 and sys.argv[1] == "prepare":
        folder = Path(sys.argv[5])
        folder.mkdir(parents=True, exist_ok=True)
        return prepare(Path(sys.argv[2]), sys.argv[3], sys.argv[4], folder)
    if len(sys.argv) < 3 or set(sys.argv[2:]) - set(SECTIONS):
        sys.exit(__doc__)
    print(f"torch {torch.__version__}, TRL {trl_version()}, {hardware.detect_hardware().name}", flush=True)
    for section in sys.argv[2:]:
        SECTIONS[section](Path(sys.argv[1]))
    return None


if __name__ == "__main__":
    main()
