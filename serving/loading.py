"""Load a model folder for inference. Not for training: weights are frozen, and in bf16 on a GPU."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stages.contract.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROMOTED = Path("champion")  # a value of --model, unless there is a folder of this name
LATEST = ("out/dpo", "out/sft", "out/pretrain")  # the first one that exists is the default


@dataclass(frozen=True)
class Served:
    """A model ready to answer: ``stops`` are the token ids that end an answer, ``context`` the tokens it can read."""

    name: str
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    stops: list[int]
    context: int


def model_parser(prog: str, about: str) -> argparse.ArgumentParser:
    """Return a parser of arguments with --model, whose value :func:`chosen` takes."""
    latest = ", ".join(LATEST)
    parser = argparse.ArgumentParser(prog, description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    about_model = f"a model folder, or {PROMOTED}: the one in MLflow's registry (default: the first of {latest})"
    parser.add_argument("--model", metavar="FOLDER", type=Path, help=about_model)
    return parser


def chosen(folder: Path | None) -> Path:
    """Return the stated model folder, the champion's, or the latest one of `out/`.

    Raises:
        UserError: there is no model, or the champion cannot be checked out.
    """
    if folder == PROMOTED and not folder.exists():
        folder = _champion()
    if folder is None:
        folder = next((Path(name) for name in LATEST if (Path(name) / "config.json").exists()), None)
        if folder is None:
            raise UserError(f"no model in {', '.join(LATEST)}. Run `make run` first, or name a folder with --model.")
    if not (folder / "config.json").exists():
        there = "holds no config.json" if folder.is_dir() else "no such folder"
        raise UserError(f"{folder}: {there}. --model takes a model folder, for example {LATEST[0]}.")
    return folder


def _champion() -> Path:
    from flows.retraining.champion import check_out_champion
    from flows.surroundings import settle_surroundings

    settle_surroundings(Path.cwd())
    return check_out_champion(Path.cwd())


def load(folder: Path) -> Served:
    """Load the model in ``folder`` for inference: in bf16 on a GPU, in fp32 on a CPU.

    Raises:
        UserError: the folder holds no model that can be read, or not all of its weights.
    """
    import torch
    from transformers.utils import logging

    from stages.trainer.model import models

    logging.set_verbosity_error()
    # The type is that of loading: `model.to` would round the frequencies of the rotary embedding, too.
    device, dtype = ("cuda", "bfloat16") if torch.cuda.is_available() else ("cpu", "float32")
    model, tokenizer = models.load(folder, dtype=dtype)
    model.to(device)
    return Served(str(folder), model.eval(), tokenizer, stop_tokens(model, tokenizer), context_of(model))


def stop_tokens(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the ids that end an answer: the model's own, the end of text and the end of a ChatML turn."""
    from stages.corpus.tokens.vocabulary import TURN_END

    stated = model.generation_config.eos_token_id
    ids = {stated} if isinstance(stated, int) else {*(stated or [])}
    ids |= {tokenizer.eos_token_id, tokenizer.get_vocab().get(TURN_END)}
    return sorted(i for i in ids if i is not None)


def context_of(model: "PreTrainedModel") -> int:
    """Return how many tokens the model can read: its positions, or its sliding window if that is shorter."""
    config = model.config
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return min(config.max_position_embeddings, window or config.max_position_embeddings)
