"""Best learning rate over widths: the standard parametrization against muP, with AdamW and with Muon.

    python -m benchmarks.mup [ROWS] [--part I/N] [--results FOLDER] [--widths 64,128,...] [--steps STEPS] [--tied]

ROWS: a folder of packed rows, as out/pack/train is; without: made-up text that can be learned. Every training has the
same rows, steps and seed. Rates are a factor of two apart; the search goes on until the best has a worse one on either
side, and a parabola through these three gives the rate between them. --part trains a share of the table, on GPU I
modulo those there are; FOLDER (the current one) has a file a part, and every call prints what all files have. A
training that is there is not run again.
"""

import argparse
import csv
import math
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages.contract.params import load_params
from stages.corpus.tokens.packed_rows import Rows, load_rows
from stages.scaling.mup import BASE, Mup
from stages.scaling.shapes import Shape, llama

if TYPE_CHECKING:
    from stages.trainer.loop.causal import CausalTrainer

WIDTHS = (64, 128, 256, 512, 1024)
LAYERS, HEAD, BATCH_TOKENS, STEPS = BASE.num_hidden_layers, BASE.head_dim, 8192, 96
FIRST = (-9, -8, -7)  # powers of two, the rates with which a search begins
EDGES = (-15, -3)
MADE_UP = (512, 2048, 256)  # vocabulary, rows, tokens of a row


@dataclass(frozen=True)
class Line:
    """One search: a row of the table at one width."""

    optimizer: str
    parametrization: str
    width: int


@dataclass(frozen=True)
class Corpus:
    """Rows to train on, how many in a step, and for how many steps; ``tied``: head and embedding are one."""

    rows: Rows
    vocabulary: int
    steps: int = STEPS
    tied: bool = False

    @property
    def batch_rows(self) -> int:
        return max(1, BATCH_TOKENS // self.rows.tokens.shape[1])

    def shape(self, width: int) -> Shape:
        shape = llama(self.vocabulary, width // HEAD, LAYERS, HEAD, self.rows.tokens.shape[1])
        return replace(shape, tie_word_embeddings=self.tied)


def made_up_rows(seed: int = 0) -> Rows:
    """Return rows of a language in which the last two tokens leave eight for the next, one half of the time."""
    vocabulary, count, length = MADE_UP
    draw = np.random.default_rng(seed)
    following = draw.integers(0, vocabulary, (4096, 8))
    weights = 0.5 ** np.arange(1, 9)
    tokens = draw.integers(0, vocabulary, (count, length), dtype=np.int64)
    for i in range(2, length):
        chosen = draw.choice(8, count, p=weights / weights.sum())
        tokens[:, i] = following[(tokens[:, i - 2] * 31 + tokens[:, i - 1]) % 4096, chosen]
    bounds = np.tile(np.array([0, length], np.int32), (count, 1))
    return Rows(tokens.astype(np.uint16), bounds, np.full(count, length, np.int32))


def make_trainer(line: Line, rate: float, corpus: Corpus) -> "CausalTrainer":
    """Return the trainer of a new model, by the recipe that a stage would have, without compilation."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, TrainingArguments

    from stages.trainer.loop.causal import CausalTrainer
    from stages.trainer.loop.rows import PackedRows
    from stages.trainer.model.initialization import rescale
    from stages.trainer.plan import hardware, recipe

    shape, data = corpus.shape(line.width), PackedRows(corpus.rows)
    switches = {"optimizer": line.optimizer, "schedule": "cosine", "compile": "none", "attention": "sdpa"}
    chosen = recipe.resolve(
        hardware.detect_hardware(), shape, corpus.batch_rows, corpus.rows.tokens.shape[1],
        load_params().trainer.model_copy(update=switches), data.one_document,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(chosen.device):
        model = LlamaForCausalLM(LlamaConfig(**shape.config(), use_cache=False))
    mup = Mup.of(shape, BASE.hidden_size) if line.parametrization == "mup" else None
    if mup:
        rescale(model, mup)
    alone = {"dataloader_num_workers": 0, "dataloader_persistent_workers": False}
    arguments = TrainingArguments(
        output_dir="/tmp/verdict-mup", max_steps=corpus.steps, learning_rate=rate, warmup_steps=0.1, weight_decay=0.1,
        adam_beta2=0.95, max_grad_norm=1.0, logging_steps=max(1, corpus.steps // 8), logging_nan_inf_filter=False,
        save_strategy="no", report_to=[], disable_tqdm=True, remove_unused_columns=False, seed=0, data_seed=0,
        **chosen.arguments() | alone,
    )  # fmt: skip
    trainer = CausalTrainer(model=model, recipe=chosen, mup=mup, train_dataset=data, args=arguments)
    trainer.remove_callback(PrinterCallback)
    return trainer


def train_loss(line: Line, rate: float, corpus: Corpus) -> float:
    """Return the mean loss of the last eighth of a training; infinite if it diverged."""
    trainer = make_trainer(line, rate, corpus)
    trainer.train()
    loss = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry][-1]
    return loss if math.isfinite(loss) else math.inf


def next_power(losses: dict[int, float]) -> int | None:
    """Return the power of two to try next; None: the best of ``losses`` has a worse one on either side."""
    if missing := [power for power in FIRST if power not in losses]:
        return missing[0]
    best = min(losses, key=lambda power: losses[power])
    beyond = [power for power in (best - 1, best + 1) if power not in losses and EDGES[0] <= power <= EDGES[1]]
    return beyond[0] if beyond else None


def best_power(losses: dict[int, float]) -> float:
    """Return the power of two at the lowest point of a parabola through the best rate and its neighbors."""
    best = min(losses, key=lambda power: losses[power])
    below, middle, above = (losses.get(best + step, math.inf) for step in (-1, 0, 1))
    if not (math.isfinite(below) and math.isfinite(above)) or below + above == 2 * middle:
        return float(best)
    return best + 0.5 * (below - above) / (below - 2 * middle + above)


Table = dict[Line, dict[int, float]]  # loss of each power of two


def read_table(folder: Path) -> Table:
    table: Table = {}
    for path in sorted(folder.glob("mup-*.csv")):
        for optimizer, parametrization, width, power, loss in csv.reader(path.read_text().splitlines()):
            table.setdefault(Line(optimizer, parametrization, int(width)), {})[int(power)] = float(loss)
    return table


def print_table(table: Table) -> None:
    """Print the best rate of every width and its ratio to the narrowest width's."""
    widths = sorted({line.width for line in table})
    print(f"{'best rate at width':<20}" + "".join(f"{width:>18}" for width in widths) + "   largest / smallest")
    for optimizer in ("adamw", "muon"):
        for parametrization in ("standard", "mup"):
            lines = [Line(optimizer, parametrization, width) for width in widths]
            powers = [best_power(table[line]) for line in lines if next_power(table.get(line, {})) is None]
            if len(powers) < len(lines):
                print(f"{optimizer + ' ' + parametrization:<20}not all searched yet")
                continue
            cells = "".join(f"{2**power:>10.2e} {2 ** (power - powers[0]):>6.2f}x" for power in powers)
            print(f"{optimizer + ' ' + parametrization:<20}{cells}   {2 ** (max(powers) - min(powers)):.2f}")


def search(lines: list[Line], corpus: Corpus, folder: Path, part: str) -> None:
    """Search every line's best rate; each loss is a line of the part's file."""
    for line in lines:
        losses = read_table(folder).get(line, {})
        while (power := next_power(losses)) is not None:
            losses[power] = train_loss(line, 2.0**power, corpus)
            with (folder / f"mup-{part.replace('/', '-of-')}.csv").open("a") as file:
                csv.writer(file).writerow([*vars(line).values(), power, losses[power]])
        print(line, {power: round(losses[power], 4) for power in sorted(losses)}, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="?", type=Path)
    parser.add_argument("--part", default="1/1")
    parser.add_argument("--results", type=Path, default=Path())
    parser.add_argument("--widths", default=",".join(map(str, WIDTHS)))
    parser.add_argument("--optimizers", default="adamw,muon")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--tied", action="store_true")
    wanted = parser.parse_args()
    index, parts = (int(number) for number in wanted.part.split("/"))
    os.environ["VERDICT_GPUS"] = "1"
    if gpus := _gpus():
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]
    rows = load_rows(wanted.rows) if wanted.rows else made_up_rows()
    corpus = Corpus(rows, -(-int(rows.tokens.max() + 1) // 64) * 64, wanted.steps, wanted.tied)
    lines = [
        Line(optimizer, parametrization, int(width))
        for width in sorted(wanted.widths.split(","), key=int, reverse=True)  # the longest first
        for optimizer in wanted.optimizers.split(",")
        for parametrization in ("standard", "mup")
    ]
    wanted.results.mkdir(parents=True, exist_ok=True)
    search(lines[index - 1 :: parts], corpus, wanted.results, wanted.part)
    print_table(read_table(wanted.results))
    return 0


def _gpus() -> list[str]:
    """Return the GPUs that this process may see, before torch has counted them."""
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return visible.split(",")
    return [str(number) for number, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]


if __name__ == "__main__":
    sys.exit(main())
