"""Tiny models of public families: random weights; configurations, tokenizers and templates in their form."""

import json
from pathlib import Path

TEXTS = [
    "Hello world, how are you today? I am fine, thank you.",
    "The quick brown fox jumps over the lazy dog.\nIt's a test of lines,  with two spaces.",
    "def f(x):\n    return x + 1\n",
] * 4
LETTERS = 256

LLAMA = """\
{{- bos_token }}
{%- if not date_string is defined %}{% set date_string = strftime_now("%d %b %Y") %}{% endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}{% set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string + "\\n\\n" + system + "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
MISTRAL = """\
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] %}{% set turns = messages[1:] %}
{%- else %}
    {%- set turns = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in turns %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate: user, assistant, user, assistant.') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {%- if loop.first and system is defined %}
            {{- '[INST] ' + system + '\\n\\n' + message['content'] + '[/INST]' }}
        {%- else %}
            {{- '[INST] ' + message['content'] + '[/INST]' }}
        {%- endif %}
    {%- else %}
        {{- ' ' + message['content'] | trim + eos_token }}
    {%- endif %}
{%- endfor %}
"""
LLAMA2 = """\
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {{- bos_token + '[INST] ' + message['content'] | trim + ' [/INST]' }}
    {%- else %}
        {{- ' ' + message['content'] | trim + ' ' + eos_token }}
    {%- endif %}
{%- endfor %}
"""
QWEN2 = """\
{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role != 'system' or not loop.first %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
QWEN3 = """\
{%- for message in messages %}
    {%- if message.role == 'assistant' and '</think>' in message.content %}
        {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
    {%- else %}
        {%- set content = message.content %}
    {%- endif %}
    {%- if message.role == 'assistant' and loop.last %}
        {{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' + content.lstrip('\\n') + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
SMOLLM3 = """\
{{- '<|im_start|>system\\nToday Date: ' + strftime_now("%d %B %Y") + '\\n' }}
{%- if messages[0]['role'] == 'system' %}{{- messages[0]['content'].rstrip() }}{% endif -%}
{{- '<|im_end|>\\n' }}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- generation %}
        {{- '<|im_start|>assistant\\n' + message.content.lstrip('\\n') + '<|im_end|>\\n' }}
        {%- endgeneration %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
OLMO = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'assistant' %}
        {{- '<|assistant|>\\n' + message['content'] + eos_token }}
        {%- if not loop.last %}{{- '\\n' }}{% endif %}
    {%- else %}
        {{- '<|' + message['role'] + '|>\\n' + message['content'] + '\\n' }}
    {%- endif %}
    {%- if loop.last and add_generation_prompt %}{{- '<|assistant|>\\n' }}{% endif %}
{%- endfor %}
"""
GEMMA = """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set first = messages[0]['content'] + '\\n\\n' %}{% set turns = messages[1:] %}
{%- else %}
    {%- set first = '' %}{% set turns = messages %}
{%- endif %}
{%- for message in turns %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception("Roles must alternate: user, assistant, user, assistant.") }}
    {%- endif %}
    {{- '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' }}
    {{- (first if loop.first else '') + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<start_of_turn>model\\n' }}
{%- endif %}
"""
CHATML_TOKENS = ["<|im_start|>", "<|im_end|>"]
LLAMA_TOKENS = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
LLAMA_TEXT = ["<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>"]

# name -> model_type, special tokens, other added tokens, names of roles, template, dtype
FAMILIES = {
    "llama3": (
        "llama", LLAMA_TEXT + LLAMA_TOKENS, [], {"bos": "<|begin_of_text|>", "eos": "<|eot_id|>"}, LLAMA, "bfloat16",
    ),
    "llama3-base": (
        "llama", LLAMA_TEXT, [], {"bos": "<|begin_of_text|>", "eos": "<|end_of_text|>"}, None, "bfloat16",
    ),
    "mistral": ("mistral", ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"], [],
                {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}, MISTRAL, "bfloat16"),
    "llama2": ("llama", ["<unk>", "<s>", "</s>"], [], {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}, LLAMA2, "float16"),
    "qwen2": ("qwen2", ["<|endoftext|>", *CHATML_TOKENS], [],
              {"eos": "<|im_end|>", "pad": "<|endoftext|>"}, QWEN2, "bfloat16"),
    "qwen3": ("qwen3", ["<|endoftext|>", *CHATML_TOKENS], ["<think>", "</think>"],
              {"eos": "<|im_end|>", "pad": "<|endoftext|>"}, QWEN3, "float32"),
    "smollm3": ("smollm3", [*LLAMA_TEXT, *CHATML_TOKENS], [],
                {"eos": "<|im_end|>", "pad": "<|im_end|>"}, SMOLLM3, "bfloat16"),
    "olmo2": ("olmo2", ["<|endoftext|>", "<|pad|>"], [],
              {"bos": "<|endoftext|>", "eos": "<|endoftext|>", "pad": "<|pad|>"}, OLMO, "bfloat16"),
    "gemma3": ("gemma3_text", ["<unk>", "<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>"], [],
               {"bos": "<bos>", "eos": "<eos>", "pad": "<pad>", "unk": "<unk>"}, GEMMA, "bfloat16"),
}  # fmt: skip


SPACE_BEFORE = {"mistral": "first", "llama2": "every", "gemma3": ""}


def make_tokenizer(name: str, folder: Path, texts: list[str] = TEXTS) -> None:
    """Save a tokenizer in the form of the public ones of this family."""
    from tokenizers import AddedToken, Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    _, special, plain, roles, template, _ = FAMILIES[name]
    backend = Tokenizer.from_str(
        _byte_level(texts) if "<unk>" not in special else _sentencepiece(special, texts, SPACE_BEFORE[name])
    )
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
    if bos := roles.get("bos"):
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    names = {f"{role}_token": token for role, token in roles.items()}
    PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **names).save_pretrained(folder)


def make_model(name: str, folder: Path, **changes: object) -> None:
    """Save a random model of this family with its tokenizer; the embedding has a row for each token of these."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    make_tokenizer(name, folder)
    kind, *_, roles, _, dtype = FAMILIES[name]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = {f"{role}_token_id": tokenizer.convert_tokens_to_ids(token) for role, token in roles.items() if role != "unk"}
    sizes = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "head_dim": 8,
        "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **sizes | ids | changes)
    AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).save_pretrained(folder)


def llama3_rope(trained_positions: int) -> dict[str, object]:
    """Return `rope_parameters` of Llama 3, which stretches the positions that it was first trained on eight times."""
    return {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": trained_positions,
    }  # fmt: skip


def _byte_level(texts: list[str]) -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=LETTERS + 60, initial_alphabet=alphabet, show_progress=False)
    )
    return backend.to_str()


def _sentencepiece(special: list[str], texts: list[str], space_before: str) -> str:
    """A BPE over characters with bytes to fall back on; ``space_before``: which parts of a text begin as after one."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    lines = pre_tokenizers.Split("\n", "isolated")  # no public vocabulary joins a newline to a letter
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(prepend_scheme="always"), lines])
    letters = [f"<0x{byte:02X}>" for byte in range(256)]
    first = [*special[:3], *letters]
    backend.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=len(first) + 120, special_tokens=first, show_progress=False)
    )
    content = json.loads(backend.to_str())
    content["added_tokens"] = []
    content["model"] |= {"byte_fallback": True, "fuse_unk": True, "unk_token": special[0]}
    backend = Tokenizer.from_str(json.dumps(content))
    if space_before == "first":
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        backend.pre_tokenizer = None
        spaces = normalizers.Replace(" ", "▁")
        prepend = [normalizers.Prepend("▁")] if space_before == "every" else []
        backend.normalizer = normalizers.Sequence([*prepend, spaces])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return backend.to_str()
