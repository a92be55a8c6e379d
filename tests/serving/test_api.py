"""The API as OpenAI's client uses it, and what its door refuses."""

import threading

import pytest

from flows.servers.door import host_headers
from serving import api
from stages.contract.errors import UserError
from tests.serving.conftest import ANSWER

KEY = "k" * 32
QUESTION = [{"role": "user", "content": "Hello?"}]


@pytest.fixture(scope="module")
def address(folder):
    import socket

    import uvicorn

    listening = socket.create_server((api.HOST, 0))
    port = listening.getsockname()[1]
    door = api.ApiDoor(api.application(folder), host_headers(api.HOST, port, []), KEY, browser_asks=False)
    server = uvicorn.Server(uvicorn.Config(door, log_level="warning", lifespan="on"))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    yield f"http://{api.HOST}:{port}"
    server.should_exit = True
    thread.join(60)


@pytest.fixture
def client(address):
    from openai import OpenAI

    with OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def test_openai_client_gets_an_answer_that_ended(client, folder):
    (model,) = client.models.list()
    answer = client.chat.completions.create(model=model.id, messages=QUESTION, temperature=0)
    choice = answer.choices[0]
    assert (model.id, choice.message.content, choice.finish_reason) == (str(folder), ANSWER, "stop")


def test_openai_client_gets_a_stream(client, folder):
    stream = client.chat.completions.create(model=str(folder), messages=QUESTION, temperature=0, stream=True)
    assert "".join(part.choices[0].delta.content or "" for part in stream) == ANSWER


def test_another_model_is_refused(client):
    from openai import BadRequestError

    with pytest.raises(BadRequestError, match="pinned"):
        client.chat.completions.create(model="gpt2", messages=QUESTION)


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/v1/models", {}, 401),
        ("/v1/models", {"authorization": f"Bearer {KEY}x"}, 401),
        ("/v1/models", {"authorization": f"Basic {KEY}"}, 401),
        ("/v1/models", {"authorization": f"bearer {KEY}"}, 200),
        ("/v1/models", {"authorization": f"Bearer {KEY}", "host": "evil.example"}, 403),
        ("/v1/models", {"authorization": f"Bearer {KEY}", "origin": "http://evil.example"}, 403),
        ("/load_model", {"authorization": f"Bearer {KEY}"}, 404),
        ("/reset", {"authorization": f"Bearer {KEY}"}, 404),
        ("/docs", {"authorization": f"Bearer {KEY}"}, 404),
        ("/health", {}, 200),
    ],
)
def test_the_door_lets_in_only_who_has_the_key(address, path, headers, status):
    import httpx

    assert httpx.get(f"{address}{path}", headers=headers).status_code == status


def test_another_host_needs_a_key_of_its_own(tmp_path, monkeypatch):
    monkeypatch.delenv(api.KEY, raising=False)
    with pytest.raises(UserError, match="VERDICT_API_KEY is not set"):
        api._key("0.0.0.0", tmp_path)
    monkeypatch.setenv(api.KEY, "secret")
    assert api._key("0.0.0.0", tmp_path) == "secret"


def test_settings_of_clients_are_private(tmp_path):
    args = api._arguments(["--port", "8123"])
    assert "http://127.0.0.1:8123/v1" in api._guide("out/sft", args, tmp_path, KEY)
    file = tmp_path / "api.env"
    assert KEY in file.read_text() and file.stat().st_mode & 0o777 == 0o600


def test_a_taken_port_is_one_line(folder, capsys, address, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    port = address.rpartition(":")[2]
    assert api.main(["--model", str(folder), "--port", port]) == 1
    assert (
        capsys.readouterr().err
        == f"error: port {port} of 127.0.0.1: Address already in use. Choose another: --port N.\n"
    )
