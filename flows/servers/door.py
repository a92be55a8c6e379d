"""Run Prefect's or MLflow's server behind a check of each request: own address, own pages, own login.

    python -m flows.servers.door prefect|mlflow --host HOST --port PORT [--name NAME ...] [--nice N]

Loopback is no border: any page in the developer's browser can send requests to 127.0.0.1. Prefect does not check the
Host header, and MLflow's check lets pages of every port of this machine read with the developer's login. Not for TLS.
The login comes from PREFECT_SERVER_API_AUTH_STRING, or from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.
"""

import argparse
import base64
import hmac
import os
import socket
import sys
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from stages.contract.errors import UserError
from stages.contract.process.background import give_way
from stages.contract.secrets import redact

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Refusal = tuple[int, str, dict[str, str]]
LOCAL = ("127.0.0.1", "localhost")
PROBES = ("/api/health", "/api/ready")  # Prefect answers them to everybody
HOST_REFUSED: Refusal = 403, "This server does not answer to this Host. serve-team --name allows another name.", {}
PAGE_REFUSED: Refusal = 403, "A page of another origin may not use this server.", {}
LOGIN_MISSING: Refusal = 401, "Unauthorized", {}
LOGIN_PROMPT: Refusal = 401, "Unauthorized", {"www-authenticate": 'Basic realm="MLflow", charset="UTF-8"'}


@dataclass(frozen=True)
class Door:
    """Pass a request to ``app`` if it has the right Host and login and comes from no page of another origin."""

    app: App
    hosts: frozenset[str]  # as in the Host header, lower case
    login: str  # user:password
    browser_asks: bool  # whether the browser asks for the login; Prefect's pages have their own form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self.refusal(scope) if scope["type"] in ("http", "websocket") else None
        if refusal is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # before it is accepted: status 403
        else:
            status, text, headers = refusal
            fields = {"content-type": "text/plain; charset=utf-8", **headers}
            encoded = [(name.encode(), value.encode()) for name, value in fields.items()]
            await send({"type": "http.response.start", "status": status, "headers": encoded})
            await send({"type": "http.response.body", "body": text.encode()})

    def refusal(self, scope: Scope) -> Refusal | None:
        """Return status, text and headers of the answer to a refused request; None lets it pass."""
        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        host = [value.lower() for value in headers.get("host", [])]
        if len(host) != 1 or host[0] not in self.hosts:
            return HOST_REFUSED
        own = f"http://{host[0]}", f"https://{host[0]}"  # https: behind a proxy that keeps the Host header
        if any(origin.lower() not in own for origin in headers.get("origin", [])) or _from_another_page(scope, headers):
            return PAGE_REFUSED
        if self.is_open(scope) or is_login(headers.get("authorization", []), self.authorization()):
            return None
        return LOGIN_PROMPT if self.browser_asks else LOGIN_MISSING

    def authorization(self) -> str:
        """Return the Authorization header of a request with the login."""
        return basic(self.login)

    def is_open(self, scope: Scope) -> bool:
        """Whether a request needs no login: Prefect's login page, and its websockets, which ask for it in a message."""
        path = scope["path"]
        api = path == "/api" or path.startswith("/api/")
        return not self.browser_asks and (not api or path in PROBES or scope["type"] == "websocket")


def _from_another_page(scope: Scope, headers: dict[str, list[str]]) -> bool:
    """Whether a browser says that another site's page caused the request. Following a link to a page is allowed."""
    site, mode, target = ("".join(headers.get(f"sec-fetch-{name}", [])) for name in ("site", "mode", "dest"))
    link = scope["type"] == "http" and scope["method"] == "GET" and (mode, target) == ("navigate", "document")
    return site not in ("", "same-origin", "none") and not link


def is_login(authorization: list[str], expected: str) -> bool:
    """Whether the Authorization headers of a request are the ``expected`` one; its scheme in any case."""
    if len(authorization) != 1:
        return False
    scheme, _, token = authorization[0].partition(" ")
    right, _, secret = expected.partition(" ")
    return scheme.lower() == right.lower() and hmac.compare_digest(token.strip().encode("latin-1"), secret.encode())


def basic(login: str) -> str:
    """Return the Authorization header of ``login``, which is user:password."""
    return "Basic " + base64.b64encode(login.encode()).decode()


def host_headers(host: str, port: int, names: Sequence[str]) -> frozenset[str]:
    """Return the allowed Host headers of a server at ``host``: its address, and ``names`` with and without port."""
    own = [name for name in (*LOCAL, host) if name != "0.0.0.0"]
    return frozenset([f"{name}:{port}".lower() for name in (*own, *names)] + [name.lower() for name in names])


def refuse_taken(host: str, port: int, advice: str) -> None:
    """Raise UserError if no server can listen on ``port`` of ``host``; the line ends with ``advice``."""
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((host, port))
        except (OSError, OverflowError) as e:
            why = getattr(e, "strerror", None) or e
            raise UserError(f"port {port} of {host}: {why}. {advice}") from None


@dataclass(frozen=True)
class RedactedStream:
    """A text stream that writes to ``stream`` without passwords and tokens."""

    stream: IO[str]

    def write(self, text: str) -> int:
        self.stream.write(redact(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def prefect() -> tuple[App, str]:
    """Return Prefect's server and its login."""
    # Prefect's own services bypass the door: create_app returns the same server to them.
    from prefect.server.api.server import create_app
    from prefect.settings import PREFECT_SERVER_API_AUTH_STRING

    return create_app(final=True), PREFECT_SERVER_API_AUTH_STRING.value()


def mlflow() -> tuple[App, str]:
    """Return MLflow's server as `mlflow server` sets it up from the same settings, and its login."""
    import uvicorn  # noqa: F401 (its import tells MLflow that it is a server)
    from mlflow.server import constants, handlers
    from mlflow.server.fastapi_app import app

    database, root = os.environ["MLFLOW_BACKEND_STORE_URI"], os.environ["MLFLOW_DEFAULT_ARTIFACT_ROOT"]
    os.environ |= {constants.BACKEND_STORE_URI_ENV_VAR: database, constants.ARTIFACT_ROOT_ENV_VAR: root}
    if destination := os.environ.get("MLFLOW_ARTIFACTS_DESTINATION"):
        os.environ |= {
            constants.SERVE_ARTIFACTS_ENV_VAR: "true", constants.ARTIFACTS_DESTINATION_ENV_VAR: destination
        }  # fmt: skip
    handlers.initialize_backend_stores(database, database, root)
    return app, f"{os.environ['MLFLOW_TRACKING_USERNAME']}:{os.environ['MLFLOW_TRACKING_PASSWORD']}"


def main(argv: list[str] | None = None) -> None:
    """Serve until SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m flows.servers.door", description=__doc__.split("\n\n")[0])
    parser.add_argument("server", choices=["prefect", "mlflow"])
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--name", action="append", default=[], help="another name that it answers to")
    parser.add_argument("--nice", type=int, default=0)
    args = parser.parse_args(argv)
    give_way(args.nice)
    sys.stdout, sys.stderr = RedactedStream(sys.stdout), RedactedStream(sys.stderr)
    import uvicorn

    app, login = prefect() if args.server == "prefect" else mlflow()
    door = Door(app, host_headers(args.host, args.port, args.name), login, args.server == "mlflow")
    uvicorn.run(door, host=args.host, port=args.port, log_level="warning", lifespan="on")


if __name__ == "__main__":
    main()
