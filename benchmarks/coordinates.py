"""Coordinate check of muP: how much a few steps change each activation, over widths.

    python -m benchmarks.coordinates

Writes docs/images/coordinates.svg. A size is the root mean square of the change of an activation from its value at
the start, on rows that were not trained on, as in Tensor Programs V (arXiv:2203.03466, appendix D.1).
"""

import sys
from pathlib import Path

import torch

from stages.scaling.mup import BASE, Mup
from stages.scaling.shapes import llama
from stages.trainer.model.initialization import rescale
from stages.trainer.optim import optimizers

WIDTHS, LAYERS, STEPS, RATE = (64, 128, 256, 512), 2, 3, 4e-3
VOCABULARY, ROWS, ROW_TOKENS = 256, 8, 32
PARTS = {
    "embedding": "model.embed_tokens", "queries": "model.layers.1.self_attn.q_proj",
    "attention": "model.layers.1.self_attn.o_proj", "gated product": "model.layers.1.mlp.down_proj",
    "residual stream": "model.layers.1", "logits": "lm_head",
}  # fmt: skip


def sizes_over_widths(
    parametrization: str, optimizer: str, widths: tuple[int, ...] = WIDTHS
) -> dict[str, dict[int, float]]:
    """Return the change of each of PARTS after STEPS steps, by width."""
    changes = {width: _changes(width, parametrization, optimizer) for width in widths}
    return {part: {width: change[part] for width, change in changes.items()} for part in PARTS}


def _changes(width: int, parametrization: str, optimizer: str) -> dict[str, float]:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = llama(VOCABULARY, width // BASE.head_dim, LAYERS, BASE.head_dim, ROW_TOKENS)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**shape.config() | {"tie_word_embeddings": False}, use_cache=False))
    mup = Mup.of(shape, BASE.hidden_size) if parametrization == "mup" else None
    if mup:
        rescale(model, mup)
    stepped = optimizers.build_optimizer(optimizer, model, RATE, 0.0, (0.9, 0.95), mup=mup)
    draw = torch.Generator().manual_seed(0)
    held_out, trained = torch.randint(0, VOCABULARY, (2, ROWS, ROW_TOKENS), generator=draw)
    before = _activations(model, held_out)
    for _ in range(STEPS):
        stepped.zero_grad()
        model(input_ids=trained, labels=trained).loss.backward()
        stepped.step()
    after = _activations(model, held_out)
    return {part: (after[part] - before[part]).square().mean().sqrt().item() for part in PARTS}


def _activations(model: torch.nn.Module, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the outputs of PARTS for ``ids``."""
    kept: dict[str, torch.Tensor] = {}

    def keep(part: str):
        def hook(module, inputs, output):
            kept[part] = (output[0] if isinstance(output, tuple) else output).detach().clone()

        return hook

    hooks = [model.get_submodule(name).register_forward_hook(keep(part)) for part, name in PARTS.items()]
    with torch.no_grad():
        model(input_ids=ids)
    for hook in hooks:
        hook.remove()
    return kept


def draw(path: Path) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "coordinates"  # the same ids every time
    figure, axes = plt.subplots(1, 4, figsize=(11, 3.2), sharey=True, layout="constrained")
    panels = [(optimizer, kind) for optimizer in ("adamw", "muon") for kind in ("standard", "mup")]
    for axis, (optimizer, parametrization) in zip(axes, panels, strict=True):
        for part, by_width in sizes_over_widths(parametrization, optimizer).items():
            axis.plot(list(by_width), list(by_width.values()), marker=".", linewidth=1, label=part)
            print(optimizer, parametrization, part, {width: round(size, 4) for width, size in by_width.items()})
        axis.set(xscale="log", yscale="log", xlabel="width", title=f"{optimizer}, {parametrization}")
        axis.set_xticks(WIDTHS, map(str, WIDTHS), minor=False)
        axis.minorticks_off()
    axes[0].set_ylabel(f"change after {STEPS} steps (RMS)")
    axes[-1].legend(fontsize=6)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    if len(sys.argv) > 1:
        sys.exit(__doc__)
    draw(Path(__file__).resolve().parents[1] / "docs" / "images" / "coordinates.svg")


if __name__ == "__main__":
    main()
