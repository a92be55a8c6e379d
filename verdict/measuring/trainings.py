"""Short trainings on packed rows, each kept on disk: several claims compare with the same AdamW."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stages.contract.errors import UserError
from stages.corpus.tokens.packed_rows import labels, load_rows
from stages.trainer.loop.causal import prepare
from stages.trainer.loop.rows import split_rows
from stages.trainer.model import growth
from stages.trainer.optim import optimizers, schedules
from stages.trainer.plan.curriculum import easy_first
from verdict.claims import overridden
from verdict.measuring.setting import COMMON, Setting

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WARMUP = 0.1  # share of the steps
BETAS = (0.9, 0.95)
HELD_OUT = 64  # validation rows
POINTS, POINT_ROWS = 24, 16  # of a curve, and validation rows of each: a fifth of the training's time on top
Masks = dict[str, torch.Tensor]  # name of a matrix -> 1 where a weight stays


@dataclass(frozen=True)
class Wish:
    """A training: overrides of params.yaml, seed, AdamW's rate and steps."""

    overrides: dict[str, Any]
    seed: int
    rate: float
    steps: int


@dataclass(frozen=True)
class Trained:
    """Result of a training: held-out loss in nats a token, seconds of a step, and (steps taken, held-out loss)."""

    loss: float
    step_seconds: float
    curve: list[tuple[int, float]]


def trained(setting: Setting, wish: Wish, prune: Callable[[], Masks] | None = None) -> Trained:
    """Return the result of ``wish``, trained now or read from the setting's memo.

    Args:
        prune: returns the weights that stay, by a training of its own; not called for a result in the memo.
    """
    identity = ("training", setting.quality, _meaning(setting, wish), prune is not None)
    result = setting.remember(lambda: asdict(Training(setting, wish, prune() if prune else None).run()), *identity)
    return Trained(**result)


def _meaning(setting: Setting, wish: Wish) -> dict[str, Any]:
    """Return what decides a training's result: overrides that say the same differently train once."""
    params, recipe = overridden(COMMON | wish.overrides), setting.recipe(setting.quality, wish.overrides)
    chosen = {name: getattr(recipe, name) for name in ("precision", "attention", "compile", "checkpointing", "offload")}
    return asdict(wish) | {
        "overrides": [params.pretrain.model_dump(mode="json"), params.trainer.model_dump(mode="json") | chosen]
    }


def weights_of_winners(setting: Setting, wish: Wish, share: float) -> Masks:
    """Train, and mark the largest ``share`` of the weights of each matrix of the blocks."""
    training = Training(setting, wish)
    training.run()
    return {
        name: (p.abs() >= p.detach().abs().flatten().quantile(1 - share)).to(p)
        for name, p in training.model.named_parameters()
        if p.ndim == 2 and ".layers." in name
    }


class Training:
    """One short training: cosine or another schedule, clipping, masks, growth, as the parameters say."""

    def __init__(self, setting: Setting, wish: Wish, masks: Masks | None = None) -> None:
        self.setting, self.wish, self.masks = setting, wish, masks or {}
        self.params = overridden(COMMON | wish.overrides)
        self.recipe = setting.recipe(setting.quality, wish.overrides)
        self.device = torch.device(self.recipe.device)
        self.rows, self.held_out = (_rows(setting, part) for part in ("train", "validation"))
        self.order = self._order()
        torch.manual_seed(wish.seed)
        layers = setting.quality.shape.num_hidden_layers
        self.grown = growth.start_layers(layers, self.params.pretrain.layers_from) == layers
        self._take(self._new(growth.start_layers(layers, self.params.pretrain.layers_from)), 0)

    def run(self) -> Trained:
        """Train and return the result."""
        wish, curve, times = self.wish, [], []
        every = -(-wish.steps // POINTS)
        for step in range(wish.steps):
            if not self.grown and step == growth.grown_at(wish.steps):
                self._grow(step)
            began = time.perf_counter()
            self._step(step)
            self._wait()
            times.append(time.perf_counter() - began)
            if (wish.steps - 1 - step) % every == 0:
                curve.append((step + 1, self._held_out(POINT_ROWS)))
        return Trained(self._held_out(HELD_OUT), float(np.median(times[len(times) // 4 :])), curve)

    def _order(self) -> np.ndarray:
        count, needed = len(self.rows.tokens), self.wish.steps * self.setting.quality.batch_rows
        rng = np.random.default_rng(self.wish.seed)
        passes = [rng.permutation(count) for _ in range(-(-needed // count))]
        order = np.concatenate(passes)[:needed]
        if self.params.pretrain.order == "easy_first":
            difficulty = np.load(self.setting.rows / "difficulty.npy", allow_pickle=False)
            order = order[easy_first(difficulty[order], needed)]
        return order

    def _new(self, layers: int) -> "PreTrainedModel":
        from transformers import LlamaConfig, LlamaForCausalLM

        config = self.setting.quality.shape.config() | {"num_hidden_layers": layers}
        with self.device:
            return LlamaForCausalLM(LlamaConfig(**config, use_cache=False)).train()

    def _take(self, model: "PreTrainedModel", step: int) -> None:
        """Prepare ``model``, and make its optimizer and schedule from ``step`` on."""
        torch._dynamo.config.recompile_limit = 64
        prepare(model, self.recipe)
        # Sophia calls the model once more in its step: autocast belongs to the forward pass, as accelerate has it.
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.bf16)
        model.forward = autocast(model.forward)
        wish, params = self.wish, self.params
        self.model = model
        self.optimizer = optimizers.build_optimizer(
            params.trainer.optimizer, model, wish.rate, params.pretrain.weight_decay, BETAS,
            params.trainer.stochastic_rounding, self.recipe.on_host,
        )  # fmt: skip
        self.scheduler = schedules.scheduler(
            self.optimizer, params.trainer.schedule, wish.steps, math.ceil(WARMUP * wish.steps), params.trainer.decay,
            step,
        )  # fmt: skip
        self._mode("train")
        self._mask()

    def _grow(self, step: int) -> None:
        layers = self.setting.quality.shape.num_hidden_layers
        self._take(growth.deepen(self.model, layers).to(self.device).train(), step)
        self.grown = True

    def _step(self, step: int) -> None:
        size, params = self.setting.quality.batch_rows, self.params.pretrain
        batch = self._batch(self.rows, self.order[step * size : (step + 1) * size])
        row_tokens = self.setting.quality.row_tokens
        parts = growth.row_parts(step, self.wish.steps, row_tokens, params.row_tokens_from)
        if parts > 1:
            batch = _shorter(batch, parts)
        loss = self.model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), params.clip)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._mask()

    def _batch(self, rows: Any, numbers: np.ndarray) -> dict[str, torch.Tensor]:
        targets = np.stack([labels(rows.tokens[i], rows.cu_seqlens[i], rows.filled[i]) for i in numbers])
        tokens = np.asarray(rows.tokens[numbers]).astype(np.int64)
        return {
            "input_ids": torch.from_numpy(tokens).to(self.device), "labels": torch.from_numpy(targets).to(self.device)
        }  # fmt: skip

    @torch.no_grad()
    def _held_out(self, most: int) -> float:
        """Return the mean loss of the first validation rows, ``most`` at most; 1,000 where it diverged."""
        self._mode("eval")
        self.model.eval()
        rows, size = self.held_out, self.setting.quality.batch_rows
        numbers = np.arange(min(most, len(rows.tokens)) // size * size).reshape(-1, size)
        loss = float(np.mean([float(self.model(**self._batch(rows, some)).loss) for some in numbers]))
        self.model.train()
        self._mode("train")
        return loss if math.isfinite(loss) else 1e3

    def _mode(self, name: str) -> None:
        if hasattr(self.optimizer, name):  # schedule_free
            getattr(self.optimizer, name)()

    @torch.no_grad()
    def _mask(self) -> None:
        for name, p in self.model.named_parameters():
            if name in self.masks:
                p.mul_(self.masks[name])

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _shorter(batch: dict[str, torch.Tensor], parts: int) -> dict[str, torch.Tensor]:
    """Cut rows of one document each into ``parts``."""
    rows, row_tokens = batch["input_ids"].shape
    ends = torch.tensor([[0, row_tokens]], dtype=torch.int32, device=batch["input_ids"].device).repeat(rows, 1)
    cut = split_rows(batch | {"cu_seqlens": ends, "documents": rows}, parts)
    return {name: cut[name] for name in ("input_ids", "labels")}


def _rows(setting: Setting, part: str) -> Any:
    folder = setting.rows / part
    if not (folder / "tokens.npy").exists():
        raise UserError(f"{folder} holds no packed rows. Make them: dvc repro pack, or name a folder: --rows FOLDER.")
    rows = load_rows(folder)
    wanted = setting.quality.row_tokens
    if rows.tokens.shape[1] != wanted:
        raise UserError(f"{folder} has rows of {rows.tokens.shape[1]} tokens; the measurement takes {wanted}.")
    return rows
