"""config.json of a model folder, checked for type and size before anything is built of it."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from stages.contract.errors import UserError
from stages.scaling.shapes import FAMILY, Shape

FILE_BYTES = 2**24
Count = Annotated[int, Field(gt=0, lt=2**31)]


class _Config(BaseModel):
    """Keys that a shape is made of or that transformers would build lists from; it checks the others itself."""

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())

    model_type: str | None = None
    vocab_size: Count
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Annotated[int, Field(gt=0, le=10_000)]  # the deepest published have 200
    num_attention_heads: Count
    max_position_embeddings: Count
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    tie_word_embeddings: bool | None = None
    sliding_window: Count | None = None
    use_sliding_window: bool | None = None
    num_labels: Annotated[int, Field(ge=0, le=100_000)] | None = None

    @field_validator("model_type")
    @classmethod
    def _of_the_family(cls, kind: str | None) -> str | None:
        if kind is not None and kind not in FAMILY:
            raise ValueError(f"a model of type {kind!r} cannot be trained here; there are {', '.join(FAMILY)}")
        return kind


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of ``folder``/config.json.

    Raises:
        UserError: it is not the JSON of a model's configuration; or the model is quantized, an adapter, or has weights
            under other names.
    """
    path = folder / "config.json"
    try:
        if not path.is_file() or path.stat().st_size > FILE_BYTES:
            raise UserError(f"{path} does not describe a model: it is no file of at most {FILE_BYTES >> 20} MiB.")
        config = _Config.model_validate_json(path.read_bytes()).model_dump(exclude_unset=True)
    except ValidationError as e:
        raise UserError(f"{path} does not describe a model: {_explain(e)}.") from None
    except OSError as e:
        raise UserError(f"{path} cannot be read: {e.strerror}.") from None
    if config.get("quantization_config") is not None:
        raise UserError(f"the model in {folder} is quantized; weights to train are fp32, bf16 or fp16.")
    if (folder / "adapter_config.json").exists():
        raise UserError(f"{folder} holds an adapter (adapter_config.json); merge it into its model first.")
    if config.get("transformers_weights") is not None:
        raise UserError(f"{path}: transformers_weights is not supported; name the weights model.safetensors.")
    return config


def given_shape(folder: Path, row_tokens: int) -> Shape:
    """Return the shape of the model in ``folder``, to continue its training with rows of ``row_tokens``.

    Raises:
        UserError: the config is not of a supported model family, or the model takes no rows of this length.
    """
    config = read_config(folder)
    shape = Shape.of(config)
    if row_tokens > shape.max_position_embeddings:
        raise UserError(
            f"pack.row_tokens is {row_tokens:,}, but the model in {folder} knows positions up to "
            f"{shape.max_position_embeddings:,}."
        )
    window = config.get("sliding_window")
    if window and row_tokens > window and config.get("use_sliding_window", True):
        raise UserError(
            f"pack.row_tokens is {row_tokens:,}, but the model in {folder} attends to {window:,} tokens at a time "
            f"(sliding_window), which the trainer does not mask. Set pack.row_tokens to {window} or less."
        )
    return shape


def _explain(error: ValidationError) -> str:
    """Return one line for the first of pydantic's complaints."""
    first = error.errors(include_url=False)[0]
    key = ".".join(map(str, first["loc"][:1]))
    if first["type"] == "value_error":
        return first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return f"{key} is missing"
    value = f" is {str(first['input'])[:40]!r}" if key else ""
    return f"{key}{value}: {first['msg']}" if key else first["msg"]
