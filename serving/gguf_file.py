"""Write a model folder as one GGUF file, the format of llama.cpp and Ollama, by the package gguf.

Supports the families in ARCHITECTURES, with a byte-level BPE tokenizer whose pattern has a name in llama.cpp. Not for
quantization below eight bits: llama.cpp's `llama-quantize` makes these files from the one written here.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.contract.errors import UserError

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Architecture:
    """A family as llama.cpp knows it.

    Attributes:
        name: general.architecture of the file.
        paired: rotary embedding turns neighbors (2i, 2i+1) of a head, not (i, i + half): rows of the query and key
            matrices are reordered from transformers' order to this one (ggml's NORM and NEOX rope types).
    """

    name: str
    paired: bool


ARCHITECTURES = {
    "llama": Architecture("llama", True),
    "mistral": Architecture("llama", True),
    "qwen2": Architecture("qwen2", False),
    "qwen3": Architecture("qwen3", False),
    "smollm3": Architecture("smollm3", True),
}
FORMATS = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}  # -> gguf.GGMLQuantizationType
_CL100K = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {_CL100K % r"\p{N}{1,3}": "llama-bpe", _CL100K % r"\p{N}": "qwen2"}  # pattern -> llama.cpp's name
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # gguf.TokenType


def write_gguf(
    folder: Path, tokenizer: "PreTrainedTokenizerBase", template: str, path: Path, number_format: str
) -> None:
    """Write the model in ``folder`` to the file ``path``.

    Args:
        folder: a checked model folder (safetensors).
        tokenizer: of the model.
        template: chat template in plain Jinja.
        path: of the new file.
        number_format: a key of FORMATS, for matrices. Vectors stay in fp32. In q8_0, matrices whose width is no
            multiple of 32 (its block) are in fp16.

    Raises:
        UserError: llama.cpp has no name for the family, the tokenizer or the position encoding.
    """
    import gguf

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind = ARCHITECTURES.get(config["model_type"])
    if kind is None:
        raise UserError(f"{folder}: GGUF of a {config['model_type']} is not supported. Use llama.cpp's own converter.")
    pre = pretokenizer(folder)
    factors = rotary_factors(config)
    writer = gguf.GGUFWriter(path, kind.name, use_temp_file=True)
    _write_shape(writer, config, folder.name, number_format)
    _write_vocabulary(writer, tokenizer, config, pre, template)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors)
    for name, values in _tensors(folder, config, kind):
        dtype = _dtype(values, number_format)
        writer.add_tensor(name, gguf.quants.quantize(values, dtype), raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def pretokenizer(folder: Path) -> str:
    """Return llama.cpp's name for the pattern that cuts texts into words before merges.

    Raises:
        UserError: the tokenizer is no byte-level BPE, or llama.cpp has no name for its pattern.
    """
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    steps = content.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    types = [step.get("type") for step in steps]
    if content["model"].get("type") == "BPE" and types[-1:] == ["ByteLevel"] and not steps[-1]["add_prefix_space"]:
        own_pattern = steps[-1].get("use_regex", True)
        if types == ["ByteLevel"] and own_pattern:
            return "gpt-2"
        if types == ["Digits", "ByteLevel"] and own_pattern and steps[0]["individual_digits"]:
            return "smollm"
        if types == ["Split", "ByteLevel"] and not own_pattern:
            pattern = steps[0]["pattern"].get("Regex", "")
            if pattern in PATTERNS:
                return PATTERNS[pattern]
    raise UserError(
        f"{folder}: its tokenizer ({content['model'].get('type')}, {', '.join(map(str, types))}) has no name in "
        "llama.cpp that is known here. Use llama.cpp's own convert_hf_to_gguf.py on the exported folder."
    )


def rotary_factors(config: dict[str, Any]) -> np.ndarray | None:
    """Return llama.cpp's divisors of the rotary embedding's frequencies, float32 (head_dim / 2,); None: all are 1.

    Raises:
        UserError: the position encoding is neither the plain one nor Llama 3's.
    """
    rotary = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rotary.get("rope_type") or rotary.get("type") or "default"
    if kind == "default":
        return None
    if kind != "llama3":
        raise UserError(f"GGUF of a model with {kind} position encoding is not supported. Use llama.cpp's converter.")
    # Llama 3.1's rule (transformers, modeling_rope_utils): long wavelengths are stretched by `factor`, short ones are
    # kept, and between them the two are mixed.
    theta = _theta(config) ** (-np.arange(0, _head_dim(config), 2, dtype=np.float64) / _head_dim(config))
    wavelength = 2 * np.pi / theta
    low, high = rotary["low_freq_factor"], rotary["high_freq_factor"]
    old = rotary["original_max_position_embeddings"]
    mix = np.clip((old / wavelength - low) / (high - low), 0, 1)
    return (1 / (mix + (1 - mix) / rotary["factor"])).astype(np.float32)


def _theta(config: dict[str, Any]) -> float:
    rotary = config.get("rope_parameters") or {}
    return float(rotary.get("rope_theta") or config.get("rope_theta") or 10_000.0)


def _head_dim(config: dict[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _write_shape(writer: "GGUFWriter", config: dict[str, Any], name: str, number_format: str) -> None:
    import gguf

    types = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
    heads, context = config["num_attention_heads"], config["max_position_embeddings"]
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[types[number_format]])
    writer.add_context_length(min(context, window or context))  # llama.cpp attends to all of the context
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(_head_dim(config))
    writer.add_value_length(_head_dim(config))
    writer.add_rope_dimension_count(_head_dim(config))
    writer.add_rope_freq_base(_theta(config))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def _write_vocabulary(
    writer: "GGUFWriter", tokenizer: "PreTrainedTokenizerBase", config: dict[str, Any], pre: str, template: str
) -> None:
    """Write every row of the embedding as a token; a row without a token is marked unused."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    added = tokenizer.added_tokens_decoder
    names, rows = {i: token for token, i in tokenizer.get_vocab().items()}, range(config["vocab_size"])
    kinds = [
        (CONTROL if added[i].special else USER_DEFINED) if i in added else NORMAL if i in names else UNUSED
        for i in rows
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([names.get(i, f"[UNUSED{i}]") for i in rows])
    writer.add_token_types(kinds)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    for name in ("bos", "eos", "pad"):
        if (token := getattr(tokenizer, f"{name}_token_id")) is not None:
            getattr(writer, f"add_{name}_token_id")(token)
    writer.add_add_bos_token(
        tokenizer.bos_token_id is not None and tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    )
    writer.add_chat_template(template)


def _tensors(folder: Path, config: dict[str, Any], kind: Architecture) -> Iterator[tuple[str, np.ndarray]]:
    """Yield llama.cpp's name and the float32 values of each weight, one at a time."""
    import gguf
    from safetensors import safe_open

    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(numbers[kind.name], config["num_hidden_layers"])
    queries, keys = config["num_attention_heads"], config.get("num_key_value_heads") or config["num_attention_heads"]
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (it is no dict)
                if name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and config["tie_word_embeddings"]):
                    continue
                values = tensors.get_tensor(name).float().numpy()
                if kind.paired and (heads := {"q_proj": queries, "k_proj": keys}.get(name.split(".")[-2])):
                    values = interleaved(values, heads)
                theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
                if theirs is None:
                    raise UserError(f"{folder}: llama.cpp's {kind.name} has no {name}.")
                yield theirs, values


def interleaved(values: np.ndarray, heads: int) -> np.ndarray:
    """Return the rows of each head in the order 0, half, 1, half + 1 ...: its two halves become neighbors."""
    shape = values.shape
    return values.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def _dtype(values: np.ndarray, number_format: str) -> Any:
    import gguf

    if values.ndim == 1:
        return gguf.GGMLQuantizationType.F32
    if number_format == "q8_0" and values.shape[-1] % 32:
        return gguf.GGMLQuantizationType.F16
    return gguf.GGMLQuantizationType[FORMATS[number_format]]
