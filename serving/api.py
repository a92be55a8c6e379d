"""Serve a model by OpenAI's API, until Ctrl-C: transformers' server behind this repository's door.

    python -m serving.api [--model FOLDER] [--host HOST] [--port N] [--name NAME ...]

The server listens on 127.0.0.1. It answers requests with the clone's key, which .verdict/api.env holds together with
the address, and with its own address as Host; pages of other origins are refused. For another --host, the key comes
from VERDICT_API_KEY. Not for many users at once: vLLM serves what serving.export writes.
"""

import argparse
import os
import shlex
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.servers.door import HOST_REFUSED, App, Door, Refusal, Scope, host_headers, refuse_taken
from flows.servers.login import login
from serving import loading
from stages.contract.errors import UserError

HOST, PORT = "127.0.0.1", 8000
KEY = "VERDICT_API_KEY"
OPEN = "/health"
WRONG_HOST: Refusal = 403, "This server does not answer to this Host. --name allows another name.", {}
NO_SUCH_PATH: Refusal = 404, "This server has /v1 and /health.", {}


@dataclass(frozen=True)
class ApiDoor(Door):
    """A door to /v1 for requests with a key, as OpenAI's clients send it."""

    def refusal(self, scope: Scope) -> Refusal | None:
        """Return the answer to a request that must not pass: transformers' server also unloads and loads models."""
        refusal = super().refusal(scope)
        if refusal is not None:
            return WRONG_HOST if refusal is HOST_REFUSED else refusal
        return None if scope["path"].startswith("/v1/") or scope["path"] == OPEN else NO_SUCH_PATH

    def authorization(self) -> str:
        """Return the Authorization header of a request with the key."""
        return f"Bearer {self.login}"

    def is_open(self, scope: Scope) -> bool:
        """Whether a request may come without the key."""
        return bool(scope["path"] == OPEN)


def main(argv: list[str] | None = None) -> int:
    """Serve. Exit code: 0 stopped by Ctrl-C or SIGTERM, 1 something cannot be used."""
    args = _arguments(argv)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:  # SIGINT too: a shell starts background jobs with it ignored
        signal.signal(number, signal.default_int_handler)
    try:
        folder = loading.chosen(args.model)
        home = Path(".verdict")
        key = _key(args.host, home)
        refuse_taken(args.host, args.port, "Choose another: --port N.")
        print(f"Loading {folder} ...", flush=True)
        door = ApiDoor(application(folder), host_headers(args.host, args.port, args.name), key, browser_asks=False)
        print(_guide(str(folder), args, home, key), flush=True)
        import uvicorn

        uvicorn.run(door, host=args.host, port=args.port, log_level="warning", lifespan="on")
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = loading.model_parser("python -m serving.api", __doc__)
    parser.add_argument("--host", default=HOST, help=f"the address to listen on ({HOST})")
    parser.add_argument("--port", metavar="N", type=int, default=PORT, help=f"({PORT})")
    parser.add_argument("--name", action="append", default=[], help="another name by which it may be asked")
    return parser.parse_args(argv)


def _key(host: str, home: Path) -> str:
    """Return the key that requests must have.

    Raises:
        UserError: the server is to be reached from other machines, and no key is set.
    """
    if key := os.environ.get(KEY):
        return key
    if host not in (HOST, "localhost"):
        raise UserError(f"--host {host}: other machines can reach it, and {KEY} is not set. Set it to a long secret.")
    return login(home).partition(":")[2]


def _guide(model: str, args: argparse.Namespace, home: Path, key: str) -> str:
    """Write the settings of clients; return the address and an example call, as lines to print."""
    near = HOST if args.host == "0.0.0.0" else args.host
    file = home / "api.env"
    home.mkdir(exist_ok=True)
    address = shlex.quote(f"http://{near}:{args.port}/v1")
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as text:
        text.write(f"export OPENAI_BASE_URL={address} OPENAI_API_KEY={shlex.quote(key)}\n")
    return (
        f"{model} answers at http://{near}:{args.port}/v1, by OpenAI's API. In another terminal:\n"
        f"  . {os.path.relpath(file)}\n"
        f'  curl $OPENAI_BASE_URL/chat/completions -H "Authorization: Bearer $OPENAI_API_KEY" '
        '-H "Content-Type: application/json" \\\n'
        f"""    -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'\n"""
        "Ctrl-C stops it."
    )


def application(folder: Path) -> App:
    """Return transformers' server for the model in ``folder``, and for no other: nothing is downloaded.

    Raises:
        UserError: the folder holds no model that can be read.
    """
    if "@" in str(folder):
        raise UserError(f"{folder}: transformers reads @ as a revision. Rename the folder, or give another path to it.")
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported
    from stages.trainer.model import models, weights

    models.shape(folder)
    weights.check_weights(folder)
    models.load_tokenizer(folder)
    from transformers.utils import logging

    logging.set_verbosity_error()
    # As transformers.cli.serve.Serve sets them up (transformers 5.17); its constructor would also start to listen.
    from transformers.cli.serving.chat_completion import ChatCompletionHandler
    from transformers.cli.serving.completion import CompletionHandler
    from transformers.cli.serving.model_manager import ModelManager
    from transformers.cli.serving.response import ResponseHandler
    from transformers.cli.serving.server import build_server
    from transformers.cli.serving.transcription import TranscriptionHandler
    from transformers.cli.serving.utils import GenerationState

    class OneModel(ModelManager):
        @staticmethod
        def get_gen_models(cache_dir: str | None = None) -> list[dict[str, Any]]:
            """List the model of this server; transformers lists those in the cache of the hub."""
            return [{"id": str(folder), "object": "model", "created": 0, "owned_by": "verdict"}]

    manager, state = OneModel(force_model=str(folder)), GenerationState()
    return build_server(
        manager, ChatCompletionHandler(manager, state), completion_handler=CompletionHandler(manager, state),
        response_handler=ResponseHandler(manager, state),
        transcription_handler=TranscriptionHandler(manager, state), generation_state=state,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
