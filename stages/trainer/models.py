"""Plain Hugging Face Llama checkpoints in and out: safetensors, tokenizer, chat template, nothing else."""

from pathlib import Path

from stages.contract.errors import UserError
from stages.scaling.shapes import Shape


def quiet() -> None:
    """Silence transformers' progress bars: in a log each is two lines for every checkpoint."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def create(config: dict, tokenizer):
    """A randomly initialised LlamaForCausalLM in fp32; seed torch before."""
    from transformers import LlamaConfig, LlamaForCausalLM

    quiet()
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = LlamaConfig(**config, **ids, pad_token_id=tokenizer.pad_token_id)
    return LlamaForCausalLM(config)


def shape(folder: Path) -> Shape:
    """Of the model in ``folder``, without loading it.

    Raises:
        UserError: it is none of the family that can be trained.
    """
    from transformers import AutoConfig

    try:
        return Shape.of(AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).to_dict())
    except UserError as e:
        raise UserError(f"{folder}: {e}") from None
    except Exception as e:
        raise _unreadable(folder, "model", e) from None


def load(folder: Path, attention: str = "sdpa", dtype: str = "float32"):
    """(model, tokenizer) from a local folder.

    Raises:
        UserError: the folder holds no model that can be read without executing code or pickles.
    """
    from transformers import AutoModelForCausalLM

    quiet()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation=attention, use_safetensors=True, trust_remote_code=False,
            local_files_only=True,
        )  # fmt: skip
    except Exception as e:
        raise _unreadable(folder, "model", e) from None
    return model, load_tokenizer(folder)


def initial(folder: Path, tokenizer) -> Path | None:
    """``folder`` if it holds a model, to go on training it; None if it does not.

    Raises:
        UserError: the model has no tokenizer, or not the one the data was encoded with, or one of more tokens than it
            knows.
    """
    if not (folder / "config.json").exists():
        return None
    if not (folder / "tokenizer.json").exists():
        raise UserError(f"the model in {folder} has no tokenizer.json beside it, which the data would be encoded with.")
    if differs := difference(load_tokenizer(folder), tokenizer):
        raise UserError(
            f"the model in {folder} has another tokenizer than out/tokenizer: {differs}. Keep the model's "
            "tokenizer.json beside its weights: the data is encoded with it."
        )
    if (rows := shape(folder).vocab_size) < len(tokenizer):
        raise UserError(f"the model in {folder} knows {rows:,} tokens, and its tokenizer has {len(tokenizer):,}.")
    return folder


def difference(theirs, ours) -> str:
    """The first token, by its id, of which one tokenizer knows another id than the other; "" if they agree."""
    theirs, ours = theirs.get_vocab(), ours.get_vocab()
    for token, _ in sorted((theirs.items() | ours.items()), key=lambda entry: entry[::-1]):
        if theirs.get(token) != ours.get(token):
            ids = [f"the id {vocab[token]}" if token in vocab else "no id" for vocab in (theirs, ours)]
            return f"{token!r} has {ids[0]} there and {ids[1]} here"
    return ""


def load_tokenizer(folder: Path):
    """The tokenizer in a local folder.

    Raises:
        UserError: there is none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as e:
        raise _unreadable(folder, "tokenizer", e) from None


def _unreadable(folder: Path, what: str, e: Exception) -> UserError:
    """What to tell of a folder that transformers cannot read: broken files end in errors of any type, and of many
    lines."""
    reason = str(e).strip().split("\n")[0] or type(e).__name__
    return UserError(f"{folder} holds no {what} that can be loaded: {reason}")


def save(model, tokenizer, folder: Path) -> None:
    """Write ``model`` and ``tokenizer`` to ``folder``; a model that diverged is not saved.

    Raises:
        UserError: a weight is not finite.
    """
    bad = [name for name, weight in model.named_parameters() if not weight.isfinite().all()]
    if bad:
        raise UserError(f"training diverged: {bad[0]} holds values that are not finite. Lower the learning rate.")
    model.config.use_cache = True
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
