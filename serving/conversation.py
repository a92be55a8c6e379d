"""One conversation with one model: its history, and answers that stream. Prints nothing itself."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from serving.loading import Served
from stages.contract.errors import UserError

if TYPE_CHECKING:
    from transformers import TextStreamer

Message = dict[str, str]


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: greedy at temperature 0."""

    temperature: float = 0.7
    top_p: float = 1.0
    new_tokens: int = 256


@dataclass(frozen=True)
class Answer:
    """``text`` without stop tokens; ``ended``: a stop token came; ``dropped``: old messages that had no room."""

    text: str
    ended: bool
    dropped: int


@dataclass
class Conversation:
    """The messages that a model has seen. Every message is text: a special token's name in it has no effect."""

    served: Served
    system: str = ""
    turns: list[Message] = field(default_factory=list)

    def ask(self, question: str, sampling: Sampling, write: Callable[[str], None]) -> Answer:
        """Answer ``question``, and keep both as turns.

        Args:
            question: the user's message.
            sampling: how tokens are drawn.
            write: called with each stretch of the answer as it is made.

        Raises:
            UserError: the question alone is longer than the model's context.
            KeyboardInterrupt: during the answer; the text written by then is kept as the answer.
        """
        self.turns.append({"role": "user", "content": question})
        parts: list[str] = []

        def keep(text: str) -> None:
            parts.append(text)
            write(text)

        try:
            ids, dropped = self._fitting(sampling.new_tokens)
            ended = self._generate(ids, sampling, keep)
        finally:
            if any(parts):
                self.turns.append({"role": "assistant", "content": "".join(parts)})
            else:
                self.turns.pop()
        return Answer("".join(parts), ended, dropped)

    def _fitting(self, new_tokens: int) -> tuple[list[int], int]:
        """Return the prompt's ids and how many of the oldest turns were dropped to leave room for an answer."""
        dropped = 0
        while (ids := self._prompt()) and len(ids) + new_tokens > self.served.context and len(self.turns) > 1:
            gone = 2 if len(self.turns) > 2 else 1  # a question goes with its answer
            del self.turns[:gone]
            dropped += gone
        if len(ids) >= self.served.context:
            raise UserError(
                f"The question has {len(ids):,} tokens with its frame; {self.served.name} reads "
                f"{self.served.context:,}. Ask a shorter one."
            )
        return ids, dropped

    def _prompt(self) -> list[int]:
        from stages.corpus.chats.turns import encode_turns

        system = [{"role": "system", "content": self.system}] if self.system else []
        ((ids, _),) = encode_turns(self.served.tokenizer, [[*system, *self.turns]], opening=True)
        return ids

    def _generate(self, ids: list[int], sampling: Sampling, write: Callable[[str], None]) -> bool:
        """Write the continuation of ``ids``; return whether it ended with a stop token."""
        import torch
        from transformers import GenerationConfig

        drawn: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0:
            drawn = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        tokenizer, stops = self.served.tokenizer, self.served.stops
        settings = GenerationConfig(
            max_new_tokens=min(sampling.new_tokens, self.served.context - len(ids)), eos_token_id=stops,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stops[0], **drawn,
        )  # fmt: skip
        inputs = torch.tensor([ids], device=self.served.model.device)
        with torch.inference_mode():
            output = self.served.model.generate(
                inputs, attention_mask=torch.ones_like(inputs), generation_config=settings,
                streamer=_streamer(tokenizer, write),
            )  # fmt: skip
        return int(output[0, -1]) in stops


def _streamer(tokenizer: Any, write: Callable[[str], None]) -> "TextStreamer":
    """Return a streamer that passes text to ``write`` word by word, so that no character is cut in half."""
    from transformers import TextStreamer

    class Written(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            if text:
                write(text)

    return Written(tokenizer, skip_prompt=True, skip_special_tokens=True)
