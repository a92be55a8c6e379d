"""Plain Hugging Face checkpoints, read and written: safetensors, tokenizer, chat template, nothing else."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.contract import disk
from stages.contract.errors import UserError
from stages.contract.process.imports import lighten_transformers
from stages.corpus.tokens.adoption import adopt, unreadable
from stages.corpus.tokens.adoption import load_tokenizer as load_tokenizer
from stages.scaling.configs import read_config
from stages.scaling.shapes import Shape

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def quiet() -> None:
    """Silence transformers' progress bars: in a log each is two lines for every checkpoint."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def create(config: dict[str, Any], tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedModel":
    """Create a randomly initialized LlamaForCausalLM in fp32; seed torch before."""
    lighten_transformers()
    from transformers import LlamaConfig, LlamaForCausalLM

    quiet()
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = LlamaConfig(**config, **ids, pad_token_id=tokenizer.pad_token_id)
    return LlamaForCausalLM(config)


def shape(folder: Path) -> Shape:
    """Return the shape of the model in ``folder``, without loading it.

    Raises:
        UserError: config.json is not of a supported model family, or unreadable.
    """
    try:
        Shape.of(read_config(folder))
        lighten_transformers()
        from transformers import AutoConfig

        return Shape.of(AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).to_dict())
    except UserError as e:
        raise UserError(str(e) if str(folder) in str(e) else f"{folder}: {e}") from None
    except Exception as e:
        raise unreadable(folder, "model", e) from None


def load(
    folder: Path, attention: str = "sdpa", dtype: str = "float32"
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load model and tokenizer of a local folder.

    Raises:
        UserError: the folder holds no model that can be read without executing code or pickles, or not all of its
            weights, or some that are not finite.
    """
    from stages.trainer.model import weights

    shape(folder)
    from transformers import AutoModelForCausalLM

    quiet()
    try:
        weights.check_weights(folder)
        model, information = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation=attention, use_safetensors=True, trust_remote_code=False,
            local_files_only=True, output_loading_info=True,
        )  # fmt: skip
    except UserError:
        raise
    except Exception as e:
        raise unreadable(folder, "model", e) from None
    if lacking := sorted(information["missing_keys"]):
        raise UserError(f"the model in {folder} lacks {lacking[0]}, and transformers made it up.")
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if model.config.tie_word_embeddings and head.weight is not embedding.weight:
        raise UserError(
            f"the model in {folder} has a head of its own; set tie_word_embeddings to false in config.json."
        )
    if odd := _not_finite(model):
        raise UserError(f"the model in {folder} is damaged: {odd} holds values that are not finite.")
    model.dtype_on_disk = saved_dtype(folder)
    return model, load_tokenizer(folder)


def saved_dtype(folder: Path) -> str:
    """Return the dtype of the model in ``folder``, as its config.json names it: float32, bfloat16 or float16."""
    config = read_config(folder)
    name = config.get("dtype") or config.get("torch_dtype")
    return name if name in ("bfloat16", "float16") else "float32"


def _not_finite(model: "PreTrainedModel") -> str:
    """Return the name of the first parameter that holds NaN or infinity, or ""."""
    return next((name for name, weight in model.named_parameters() if not weight.isfinite().all()), "")


def initial(folder: Path, tokenizer: "PreTrainedTokenizerBase") -> Path | None:
    """Return ``folder`` if it holds a model, to continue its training; None if it does not.

    Raises:
        UserError: the model has no tokenizer, or not the one the data was encoded with.
    """
    if not (folder / "config.json").exists():
        return None
    if not (folder / "tokenizer.json").exists():
        raise UserError(f"the model in {folder} has no tokenizer.json, with which the data would be encoded.")
    own = load_tokenizer(folder)
    if (differs := difference(own, tokenizer)) and difference(adopt(folder)[0], tokenizer):
        raise UserError(
            f"the model in {folder} has another tokenizer than out/tokenizer: {differs}. Keep the model's "
            "tokenizer.json beside its weights: the data is encoded with it."
        )
    return folder


def load_initial(folder: Path, tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedModel":
    """Load the model in ``folder`` with an embedding of at least as many rows as ``tokenizer`` has ids.

    New rows are the mean of the others, so that they are as likely as an average token (Hewitt 2021).
    """
    model, _ = load(folder)
    known, wanted = model.get_input_embeddings().weight.shape[0], 1 + max(tokenizer.get_vocab().values())
    if wanted > known:
        model.resize_token_embeddings(wanted, pad_to_multiple_of=64, mean_resizing=False)
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            layer.weight.data[known:] = layer.weight.data[:known].mean(0)
        rows = model.config.vocab_size
        print(f"init: the embedding grows from {known:,} to {rows:,} rows for new tokens", flush=True)
    return model


def difference(theirs: "PreTrainedTokenizerBase", ours: "PreTrainedTokenizerBase") -> str:
    """Return the first token, by its id, that has another id in the other tokenizer; "" if they agree."""
    theirs, ours = theirs.get_vocab(), ours.get_vocab()
    for token, _ in sorted((theirs.items() | ours.items()), key=lambda entry: entry[::-1]):
        if theirs.get(token) != ours.get(token):
            ids = [f"the id {vocab[token]}" if token in vocab else "no id" for vocab in (theirs, ours)]
            return f"{token!r} has {ids[0]} there and {ids[1]} here"
    return ""


def save_model(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Write ``model`` and ``tokenizer`` to ``folder``. Raises UserError if a weight is not finite."""
    if odd := _not_finite(model):
        raise UserError(f"training diverged: {odd} holds values that are not finite. Lower the learning rate.")
    model.config.use_cache = True
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    disk.honor_umask(folder)
