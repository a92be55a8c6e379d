"""No password or token stays in a text that is written or shown."""

import logging

import pytest

from stages.contract.process.loopback import without_proxy
from stages.contract.secrets import hide_in_logs, redact

SECRET = "pL4nt-ed"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (f"API request to http://joe:{SECRET}@host:5000/api failed", "API request to http://host:5000/api failed"),
        (f"http://joe:{SECRET}@@a/b", "http://a/b"),
        (f"postgresql://joe:a/{SECRET}@host/db", "postgresql://host/db"),
        (f"postgresql+asyncpg://h/db?user=joe&password={SECRET}", "postgresql+asyncpg://h/db?user=joe&password=***"),
        (f"https://{SECRET}@github.com/a/b.git", "https://github.com/a/b.git"),
        (f"https://s3/x?X-Amz-Signature={SECRET}&part=1", "https://s3/x?X-Amz-Signature=***&part=1"),
        (f"Authorization: Bearer {SECRET}", "Authorization: Bearer ***"),
        ("http://127.0.0.1:5000/x@y sqlite:////a@b/c.db", "http://127.0.0.1:5000/x@y sqlite:////a@b/c.db"),
        ("http://[::1]:5000/x@y?keyword=a&tokens=7", "http://[::1]:5000/x@y?keyword=a&tokens=7"),
        ("joe@example.org", "joe@example.org"),
    ],
)
def test_addresses_lose_user_password_and_token(text, clean):
    assert redact(text, {}) == clean


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("MLFLOW_TRACKING_PASSWORD", SECRET, SECRET),
        ("MLFLOW_TRACKING_TOKEN", SECRET, SECRET),
        ("PREFECT_API_AUTH_STRING", f"admin:{SECRET}", SECRET),
        ("PREFECT_API_AUTH_STRING", "admin:pass", "YWRtaW46cGFzcw=="),
        ("PREFECT_API_KEY", SECRET, SECRET),
        ("AWS_SECRET_ACCESS_KEY", SECRET, SECRET),
        ("PREFECT_API_DATABASE_CONNECTION_URL", f"postgresql://joe:{SECRET}@h/db", SECRET),
        ("http_proxy", f"http://joe:{SECRET}%21@proxy:3128", f"{SECRET}!"),
        ("VERDICT_ALERT_WEBHOOK", f"https://hooks.example.org/services/T0/{SECRET}", SECRET),
        ("VERDICT_ALERT_URLS", f"json://h/a mailtos://joe:{SECRET}@h?to=a@example.org", SECRET),
        ("VERDICT_ALERT_URLS", f"slack://T1JJ3T3L2/{SECRET}/TIiajkdnlazkcOXrIdevi7FQ", SECRET),
    ],
)
def test_the_value_of_a_secret_setting_is_hidden(name, value, shown):
    assert redact(f"it said '{shown}' and passed", {name: value}) == "it said '***' and passed"


@pytest.mark.parametrize(
    "setting", [("SSH_AUTH_SOCK", "/run/agent"), ("TOKENIZERS_PARALLELISM", "false"), ("PWD", "/work")]
)
def test_other_settings_stay_readable(setting):
    assert redact(setting[1], dict([setting])) == setting[1]


def test_a_log_record_is_redacted_with_its_traceback(caplog):
    hide_in_logs(caplog.handler)
    try:
        raise OSError(f"no answer from http://joe:{SECRET}@host")
    except OSError:
        logging.getLogger("toy").exception("at %s", f"http://joe:{SECRET}@host")
    assert "http://host" in caplog.text
    assert SECRET not in caplog.text


def test_own_servers_are_reached_without_a_proxy():
    environment = {"NO_PROXY": "example.org, localhost", "MLFLOW_TRACKING_URI": "http://joe:x@127.0.0.2:5000"}
    without_proxy(environment)
    assert environment["no_proxy"] == environment["NO_PROXY"] == "example.org,localhost,127.0.0.1,::1,127.0.0.2"
    everything = {"no_proxy": "*"}
    without_proxy(everything)
    assert everything["no_proxy"] == "*"
