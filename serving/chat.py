"""Talk to a model in the terminal.

    python -m serving.chat [--model FOLDER] [--beside FOLDER] [--system TEXT] [--temperature T] [--new-tokens N]

Answers stream. A model beside the first one, out/pretrain for instance, gets the same questions. Ctrl-C stops an
answer, Ctrl-D ends. From a pipe, each line is a question: echo "Who wrote Emma?" | python -m serving.chat
Not a server: see serving.api.
"""

import argparse
import os
import re
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from serving import loading
from serving.conversation import Conversation, Sampling
from stages.contract.errors import UserError

PROMPT = "> "
COMMAND = re.compile(r"/[a-z]+")  # /etc/passwd is a question
HELP = """\
/reset            forget the conversation
/system TEXT      set the system prompt, and forget the conversation
/temperature N    draw answers at this temperature; 0: greedy
/help             this text
Ctrl-C stops an answer, Ctrl-D ends."""


def main(argv: list[str] | None = None) -> int:
    """Run the chat. Exit code: 0 ended, 1 no model that can be used, 130 interrupted while it loads."""
    args = _arguments(argv)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits it as ignored
    try:
        sampling = _sampling(args)
        folders = [loading.chosen(args.model), *([loading.chosen(args.beside)] if args.beside else [])]
        if sys.stdin.isatty():
            print(f"Loading {' and '.join(map(str, folders))} ...", flush=True)
        _seed(args.seed)
        Chat([Conversation(loading.load(folder), args.system) for folder in folders], sampling).run()
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of the answers, `head` for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = loading.model_parser("python -m serving.chat", __doc__)
    parser.add_argument("--beside", metavar="FOLDER", type=Path, help="a second model, which gets the same questions")
    parser.add_argument("--system", metavar="TEXT", default="", help="system prompt")
    parser.add_argument("--temperature", metavar="N", type=float, default=Sampling.temperature, help="0: greedy (0.7)")
    parser.add_argument(
        "--top-p", metavar="P", type=float, default=Sampling.top_p, help="sample from this share of probability (1)"
    )
    parser.add_argument(
        "--new-tokens", metavar="N", type=int, default=Sampling.new_tokens, help="of an answer at most (256)"
    )
    parser.add_argument("--seed", metavar="N", type=int, help="draw the same answers again")
    return parser.parse_args(argv)


def _sampling(args: argparse.Namespace) -> Sampling:
    if not 0 <= args.temperature <= 100:
        raise UserError(f"--temperature: {args.temperature:g} is not allowed. Use 0 (greedy) to 100.")
    if not 0 < args.top_p <= 1:
        raise UserError(f"--top-p: {args.top_p:g} is not allowed. Use more than 0, at most 1.")
    if args.new_tokens < 1:
        raise UserError(f"--new-tokens: {args.new_tokens} is not allowed. Use 1 or more.")
    return Sampling(args.temperature, args.top_p, args.new_tokens)


def _seed(seed: int | None) -> None:
    if seed is not None:
        import torch

        torch.manual_seed(seed)


class Chat:
    """The loop of questions and answers, at a terminal or from a pipe."""

    def __init__(self, conversations: list[Conversation], sampling: Sampling) -> None:
        self.conversations, self.sampling = conversations, sampling
        self.interactive = sys.stdin.isatty()

    def run(self) -> None:
        """Answer until the input ends."""
        if self.interactive:
            print("Type a question. /help lists commands, Ctrl-C stops an answer, Ctrl-D ends.", flush=True)
        for line in self._lines():
            question = line.strip()
            try:
                if COMMAND.fullmatch(question.partition(" ")[0]):
                    print(self.command(question), flush=True)
                elif question:
                    self.answer(question)
            except UserError as e:
                if not self.interactive:
                    raise
                print(f"error: {e}", flush=True)

    def _lines(self) -> Iterator[str]:
        """Yield what the user types, or the lines of the pipe."""
        if not self.interactive:
            yield from sys.stdin
            return
        import readline  # noqa: F401 (input() edits lines and keeps a history with it)

        while True:
            try:
                yield input(PROMPT)
            except KeyboardInterrupt:
                print("\nCtrl-D ends.", flush=True)
            except EOFError:
                print(flush=True)
                return

    def answer(self, question: str) -> None:
        """Print each model's answer as it is made."""
        for conversation in self.conversations:
            if len(self.conversations) > 1:
                print(f"[{conversation.served.name}] ", end="", flush=True)
            try:
                said = conversation.ask(question, self.sampling, lambda text: print(text, end="", flush=True))
            except KeyboardInterrupt:
                if not self.interactive:
                    raise
                print(" [stopped]", flush=True)
                return
            print("" if said.ended else f" [not ended after {self.sampling.new_tokens} tokens]", flush=True)
            if said.dropped and self.interactive:
                print(f"[the oldest {said.dropped} messages were dropped: the context is full]", flush=True)

    def command(self, line: str) -> str:
        """Carry out a command that starts with a slash; return the text to print.

        Raises:
            UserError: there is no such command, or its value cannot be used.
        """
        name, _, value = line.partition(" ")
        if name == "/reset":
            return self._reset("The conversation is forgotten.")
        if name == "/system":
            for conversation in self.conversations:
                conversation.system = value.strip()
            return self._reset("The system prompt is set, and the conversation forgotten.")
        if name == "/temperature":
            try:
                temperature = float(value)
            except ValueError:
                temperature = -1.0
            if not 0 <= temperature <= 100:
                raise UserError(f"/temperature: {value.strip() or 'nothing'} is not allowed. Use 0 (greedy) to 100.")
            self.sampling = replace(self.sampling, temperature=temperature)
            return f"Answers are drawn at temperature {temperature:g}."
        if name == "/help":
            return HELP
        raise UserError(f"{name}: no such command. /help lists them.")

    def _reset(self, said: str) -> str:
        for conversation in self.conversations:
            conversation.turns.clear()
        return said


if __name__ == "__main__":
    sys.exit(main())
