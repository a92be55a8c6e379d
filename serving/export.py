"""Export a model in forms that other programs read.

    python -m serving.export [--model FOLDER] [--to FOLDER] [--dtype bf16|fp16|fp32] [--shard 5GB] [--gguf FORMAT ...]

Writes a Hugging Face folder as older releases of transformers, vLLM and llama.cpp know it, and GGUF files for llama.cpp
and Ollama, with a model card. --gguf: bf16 (the default), f32, f16, q8_0, or none. Not a stage: DVC does not cache it.
"""

import argparse
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving import card, gguf_file, loading
from stages.contract import disk
from stages.contract.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
SHARD = re.compile(r"[1-9]\d*(MB|GB)")
NONE = "none"
CHATML = """\
TEMPLATE \"\"\"{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
\"\"\"
PARAMETER stop <|im_end|>
PARAMETER stop <|endoftext|>
"""  # of Ollama, whose templates are Go's


def main(argv: list[str] | None = None) -> int:
    """Export. Exit code: 0 written, 1 something cannot be used."""
    args = _arguments(argv)
    try:
        folder = loading.chosen(args.model)
        target = args.to or Path("export") / folder.name
        if not SHARD.fullmatch(args.shard):
            raise UserError(f"--shard: {args.shard!r} is not allowed. Write a number and MB or GB, for example 5GB.")
        if target.exists() and not (args.force and (target / "README.md").exists()):
            raise UserError(f"{target} exists. Name another folder with --to, or replace an export with --force.")
        export(folder, target, args.dtype, args.shard, args.gguf, args.license)
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = loading.model_parser("python -m serving.export", __doc__)
    parser.add_argument("--to", metavar="FOLDER", type=Path, help="the new folder (default: export/NAME)")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="of the safetensors")
    parser.add_argument("--shard", metavar="SIZE", default="5GB", help="size of a safetensors file at most (5GB)")
    parser.add_argument(
        "--gguf",
        metavar="FORMAT",
        choices=[*gguf_file.FORMATS, NONE],
        nargs="+",
        help="GGUF files to write: f32, f16, bf16, q8_0, none",
    )
    parser.add_argument("--license", metavar="ID", default="", help="SPDX id, for the model card")
    parser.add_argument("--force", action="store_true", help="replace an earlier export")
    return parser.parse_args(argv)


def export(folder: Path, target: Path, dtype: str, shard: str, formats: list[str] | None, license_id: str) -> None:
    """Write the model in ``folder`` to ``target``: aside first, and moved when all of it is there.

    Args:
        folder: a model folder.
        target: the new folder; an old one is replaced.
        dtype: a key of DTYPES, of the safetensors.
        shard: size of a safetensors file at most, "5GB".
        formats: of GGUF files; None: bf16 if llama.cpp knows the model, and a line if not.
        license_id: SPDX id of the model card, or "".

    Raises:
        UserError: the model cannot be read, or not be written as ``formats``.
    """
    import torch

    from stages.trainer.model import models

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed, which transformers imports, prints a warning
    model, tokenizer = models.load(folder)
    aside = target.with_name(f".{target.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        write_plain(model, tokenizer, aside, dtype, shard)
        template = plain_template(tokenizer.get_chat_template()) if tokenizer.chat_template else ""
        files = _write_gguf(folder, tokenizer, template, aside, target.name, formats)
        text = card.card(folder, target.name, DTYPES[dtype], license_id, files)
        (aside / "README.md").write_text(text, encoding="utf-8")
        disk.honor_umask(aside)
        shutil.rmtree(target, ignore_errors=True)
        aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    for file in sorted(target.iterdir()):
        print(f"{file}  {file.stat().st_size / 1e6:,.1f} MB", flush=True)


def write_plain(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", folder: Path, dtype: str, shard: str
) -> None:
    """Write a Hugging Face folder with the keys of both transformers 4 and 5."""
    import torch

    context = loading.context_of(model)
    model.to(getattr(torch, DTYPES[dtype])).save_pretrained(folder, max_shard_size=shard)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    if tokenizer.chat_template:
        template = plain_template(tokenizer.get_chat_template())
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    _rewrite(folder / "tokenizer_config.json", lambda settings: tokenizer_settings(settings, context))
    _rewrite(folder / "config.json", with_old_keys)
    stops = loading.stop_tokens(model, tokenizer)
    _rewrite(folder / "generation_config.json", lambda settings: settings | {"eos_token_id": stops})


def plain_template(template: str) -> str:
    """Return a chat template without generation marks, which only transformers knows; its output is the same.

    `if true` takes their place, so that white space is trimmed as before.
    """
    opened = re.sub(r"\{%([-+]?)\s*generation\s*([-+]?)%\}", r"{%\1 if true \2%}", template)
    return re.sub(r"\{%([-+]?)\s*endgeneration\s*([-+]?)%\}", r"{%\1 endif \2%}", opened)


def tokenizer_settings(settings: dict[str, Any], context: int) -> dict[str, Any]:
    """Return tokenizer_config.json as transformers 4 reads it: it knows neither this class nor a list of extras."""
    settings = {k: v for k, v in settings.items() if k not in ("backend", "is_local", "local_files_only")}
    extra = settings.pop("extra_special_tokens", None)
    if isinstance(extra, list):
        settings["additional_special_tokens"] = extra
    elif extra:
        settings["extra_special_tokens"] = extra
    longest = settings.get("model_max_length") or context
    kind = settings.get("tokenizer_class")
    return settings | {
        "tokenizer_class": "PreTrainedTokenizerFast" if kind in (None, "TokenizersBackend") else kind,
        "model_max_length": context if longest > 10**9 else longest,
        "model_input_names": ["input_ids", "attention_mask"],  # 4's default has token types, which no Llama takes
    }


def with_old_keys(config: dict[str, Any]) -> dict[str, Any]:
    """Return config.json with `torch_dtype`, `rope_theta` and `rope_scaling`, by which transformers 4 reads it."""
    rotary = dict(config.get("rope_parameters") or {})
    theta = rotary.pop("rope_theta", None)
    scaling = rotary if rotary.get("rope_type", "default") != "default" else None
    old = {"torch_dtype": config.get("dtype"), "rope_theta": theta, "rope_scaling": scaling}
    return config | {key: value for key, value in old.items() if value is not None}


def _rewrite(path: Path, change: Any) -> None:
    settings = change(json.loads(path.read_text(encoding="utf-8")))
    path.write_text(json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_gguf(
    folder: Path, tokenizer: "PreTrainedTokenizerBase", template: str, aside: Path, name: str, formats: list[str] | None
) -> list[str]:
    """Write the GGUF files and a Modelfile for Ollama; return their names."""
    from stages.corpus.tokens.vocabulary import CHAT_TEMPLATE

    files: list[str] = []
    for number_format in dict.fromkeys(formats or ["bf16"]):
        if number_format == NONE:
            continue
        file = f"{name}-{number_format}.gguf"
        try:
            gguf_file.write_gguf(folder, tokenizer, template, aside / file, number_format)
        except UserError as e:
            if formats:
                raise
            print(f"no GGUF file: {e}", flush=True)
            continue
        files.append(file)
    if files and template == plain_template(CHAT_TEMPLATE):
        (aside / "Modelfile").write_text(f"FROM ./{files[0]}\n{CHATML}", encoding="utf-8")
    return files


if __name__ == "__main__":
    sys.exit(main())
