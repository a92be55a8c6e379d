"""Check of a model folder's weights against its config.json, by the headers of its safetensors files.

Nothing is built. transformers answers a bad folder with a table in the log and a random layer, or never (a config.json
of ten million layers).
"""

import json
import re
from pathlib import Path
from typing import NamedTuple

from stages.contract.errors import UserError
from stages.scaling.configs import FILE_BYTES, read_config

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")
LAYER = re.compile(r"(?:model\.)?layers\.(\d+)\.")
IGNORED = re.compile(r"rotary_emb\.inv_freq$")  # a buffer that old checkpoints hold


class Tensor(NamedTuple):
    """Header of a tensor."""

    shape: tuple[int, ...]
    dtype: str  # as safetensors names it


def check_weights(folder: Path) -> None:
    """Check that the weights in ``folder`` are those that its config.json describes.

    Raises:
        UserError: a weight is missing, unexpected, of another shape or not a floating-point number; or a file is
            missing, damaged or outside the folder.
    """
    config, present = read_config(folder), _tensors(folder)
    if wrong := _layers(config["num_hidden_layers"], present):
        raise UserError(f"the model in {folder} is not the one that its config.json describes: {wrong}.")
    expected, tied = _expected(folder)
    wrong = _missing(expected, tied, present) or _unexpected(expected, tied, present) or _different(expected, present)
    if wrong:
        raise UserError(
            f"the model in {folder} is not the one that its config.json describes: {wrong}. Take a whole copy of it."
        )


def _layers(stated: int, present: dict[str, Tensor]) -> str:
    """Return what is wrong with the number of layers, before anything of that many layers is built."""
    layers = 1 + max((int(match[1]) for match in map(LAYER.match, present) if match), default=-1)
    if layers == stated:
        return ""
    wrong = f"model.layers.{layers}.* are missing" if layers < stated else f"model.layers.{stated}.* are no part of it"
    return f"{wrong} (num_hidden_layers: {stated:,})"


def _missing(expected: dict[str, tuple[int, ...]], tied: dict[str, str], present: dict[str, Tensor]) -> str:
    pairs = tied | {source: target for target, source in tied.items()}
    return _named("missing", [n for n in expected if n not in present and pairs.get(n) not in present])


def _unexpected(expected: dict[str, tuple[int, ...]], tied: dict[str, str], present: dict[str, Tensor]) -> str:
    unknown = [n for n in present if n not in expected and n not in tied and not IGNORED.search(n)]
    return _named("no part of it", unknown)


def _different(expected: dict[str, tuple[int, ...]], present: dict[str, Tensor]) -> str:
    for name, tensor in present.items():
        shape = expected.get(name, tensor.shape)
        if tensor.shape != shape:
            return f"{name} is {list(tensor.shape)} instead of {list(shape)}"
        if tensor.dtype not in FLOATS:
            return f"{name} is of type {tensor.dtype}; weights to train are {', '.join(FLOATS)}"
    return ""


def _named(what: str, names: list[str]) -> str:
    if len(names) > 1:
        return f"{names[0]} and {len(names) - 1:,} more are {what}"
    return f"{names[0]} is {what}" if names else ""


def _expected(folder: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Return the configured model's shapes by name, and its tied weights with the name each shares its values with."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", trust_remote_code=False)
    return {name: tuple(t.shape) for name, t in model.state_dict().items()}, dict(model.all_tied_weights_keys)


def _tensors(folder: Path) -> dict[str, Tensor]:
    """Return the headers of all tensors in ``folder``, under a whole model's names."""
    tensors: dict[str, Tensor] = {}
    for file in [folder / SINGLE] if (folder / SINGLE).is_file() else _shards(folder):
        tensors |= _header(file)
    # A model saved without its head has names without the prefix.
    return {n if n.startswith(("model.", "lm_head.")) else f"model.{n}": tensor for n, tensor in tensors.items()}


def _header(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 (it is no dict)
            return {name: Tensor(tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}
    except (SafetensorError, OSError, ValueError) as e:
        raise UserError(f"{file} is damaged: {str(e).splitlines()[0]}.") from None


def _shards(folder: Path) -> list[Path]:
    """Return the safetensors files of ``folder`` that its index names."""
    index = folder / INDEX
    if not index.is_file():
        raise UserError(f"{folder} holds no {SINGLE} and no {INDEX}; pickles are not read. Save it as safetensors.")
    try:
        text = index.read_text(encoding="utf-8") if index.stat().st_size <= FILE_BYTES else ""
        files = sorted(set(json.loads(text)["weight_map"].values()))
        odd = next((n for n in files if Path(n).name != n or not n.endswith(".safetensors")), None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{index} is no index of safetensors files.") from None
    if odd:
        raise UserError(f"{index} names {odd!r}; it may name .safetensors files in {folder} only.")
    if absent := [name for name in files if not (folder / name).is_file()]:
        raise UserError(f"{index} names {absent[0]}, which is not in {folder}.")
    return [folder / name for name in files]
