"""Llama shapes and what they cost."""

import math
from dataclasses import asdict, dataclass

from stages.contract.errors import UserError

# model_type of the checkpoints that can be trained further: RMSNorm, rotary embedding, gated product, plain attention
# and a plain head, which is what the trainer runs.
FAMILY = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
ASPECT = (16, 128)  # hidden size per layer; Kaplan et al. 2020, fig. 5: loss is flat over this range
TIE_ABOVE = 0.15  # share of the head in N from which the head shares the embedding's weights


@dataclass(frozen=True)
class Shape:
    """A Llama: RMSNorm, RoPE, SwiGLU; biases are not counted. Sizes in elements."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    head_dim: int
    max_position_embeddings: int
    num_key_value_heads: int | None = None  # None: as many as heads
    tie_word_embeddings: bool | None = None  # None: tied where the head is a large share of the model

    @classmethod
    def of(cls, config: dict) -> "Shape":
        """Of the contents of the config.json of a model of FAMILY, or of a plan's ``model``.

        Raises:
            UserError: it is none.
        """
        if config.get("model_type", FAMILY[0]) not in FAMILY:
            raise UserError(
                f"a model of type {config['model_type']!r} cannot be trained here; there are {', '.join(FAMILY)}."
            )
        # What a configuration may leave out follows from the rest.
        head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        config = {"num_key_value_heads": None, "tie_word_embeddings": None} | config | {"head_dim": head_dim}
        return cls(**{name: config[name] for name in cls.__dataclass_fields__})

    @property
    def key_value_width(self) -> int:
        """Of the keys, and of the values: of fewer heads than the queries' with grouped-query attention."""
        return (self.num_key_value_heads or self.num_attention_heads) * self.head_dim

    @property
    def block_parameters(self) -> int:
        d = self.hidden_size
        attention = 2 * d * (self.num_attention_heads * self.head_dim + self.key_value_width)
        return self.num_hidden_layers * (attention + 3 * d * self.intermediate_size + 2 * d) + d

    @property
    def embedding_parameters(self) -> int:
        return self.vocab_size * self.hidden_size

    @property
    def matmul_parameters(self) -> int:
        """N of the scaling laws: blocks and head."""
        return self.block_parameters + self.embedding_parameters

    @property
    def tied(self) -> bool:
        if self.tie_word_embeddings is not None:
            return self.tie_word_embeddings
        return self.embedding_parameters > TIE_ABOVE * self.matmul_parameters

    @property
    def parameters(self) -> int:
        return self.matmul_parameters + (0 if self.tied else self.embedding_parameters)

    def flops_per_token(self, row_tokens: int) -> int:
        """Forward and backward, attention counted in full (12·L·d·T), as most papers report MFU."""
        attention = 12 * self.num_hidden_layers * self.num_attention_heads * self.head_dim * row_tokens
        return 6 * self.matmul_parameters + attention

    def config(self) -> dict:
        """Keyword arguments of transformers.LlamaConfig."""
        heads = self.num_key_value_heads or self.num_attention_heads
        return asdict(self) | {"num_key_value_heads": heads, "tie_word_embeddings": self.tied}


def llama(vocab_size: int, heads: int, layers: int, head_dim: int, row_tokens: int) -> Shape:
    hidden = heads * head_dim
    multiple = 256 if hidden >= 1024 else 32  # wide kernels want wide tiles
    intermediate = max(multiple, round(hidden * 8 / 3 / multiple) * multiple)
    return Shape(vocab_size, hidden, intermediate, layers, heads, head_dim, row_tokens)


def default_head_dim(parameters: float) -> int:
    """128 is what attention kernels are fastest at; small models need several heads more than they need speed."""
    return 32 if parameters < 1e6 else 64 if parameters < 1e8 else 128


def divisible(rows: float) -> int:
    """The batch nearest to ``rows`` whose two leading bits alone are set: 6, 8, 12, 16, 24 ... Seven rows would
    have to be cut into seven micro-batches, or one."""
    step = 2 ** max(0, math.floor(math.log2(max(rows, 1))) - 1)
    return max(1, round(rows / step) * step)


def nearest(parameters: float, vocab_size: int, head_dim: int, row_tokens: int) -> Shape:
    """The shape whose N is nearest to ``parameters``; of several within 5 %, the one nearest to 64 wide a layer."""
    candidates = [
        llama(vocab_size, heads, layers, head_dim, row_tokens)
        for heads in range(1, 129)
        for layers in range(2, 97)
        if ASPECT[0] <= heads * head_dim / layers <= ASPECT[1]
    ]

    def distance(shape: Shape) -> tuple[float, float]:
        ratio = max(shape.matmul_parameters / parameters, parameters / shape.matmul_parameters)
        aspect = shape.hidden_size / shape.num_hidden_layers / 64
        return (0.0 if ratio < 1.05 else ratio, max(aspect, 1 / aspect))

    return min(candidates, key=distance)
