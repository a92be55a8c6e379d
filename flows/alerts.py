"""Tell people about a run that needs them, by a webhook, by e-mail, or by both. Without a setting, nobody is told.

VERDICT_ALERT_WEBHOOK  a URL that is sent JSON: flow, run, event, stage, reason, lines, url, and all of it as `text`
VERDICT_ALERT_SMTP     smtp://[user:password@]host[:port]/?to=a@example.org,b@example.org[&from=c@example.org]
                       (smtps://: encrypted from the first byte; smtp:// is as soon as the server offers it)
VERDICT_STALL_MINUTES  how long a stage may say nothing before it counts as stuck (60; 0: for ever)

A flow is watched with ``@flow(**alerts.HOOKS)``. Hooks and not Prefect's automations, so that it is the same with
`make run`'s temporary server. A run somebody cancels is no news to him and no alert. Nothing here ever raises.
"""

import contextlib
import json
import os
import re
import smtplib
import socket
import ssl
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path

from flows.curve import Curve
from stages.contract.errors import UserError

TIMEOUT_SECONDS = 10
POLL_SECONDS = 1.0
STALL_MINUTES = 60.0


@dataclass(frozen=True)
class Source:
    """Whose alert it is: the flow's name, its run's name and address."""

    flow: str
    run: str
    url: str


def this_run() -> Source:
    """The flow run in which this is called."""
    from prefect.runtime import flow_run

    return Source(flow_run.flow_name, flow_run.name, flow_run.ui_url or "")


def _flow_ended(flow, flow_run, state) -> None:
    """Prefect's hook for a flow run that failed, in its own process, or that crashed, in its worker's."""
    if flow_run.parent_task_run_id:  # the flow that called it ends for the same reason, and tells it
        return
    from prefect.utilities.urls import url_for

    with contextlib.suppress(Exception):  # a hook's error would be the second on the same page
        reason, *rest = (state.message or "no reason was given").splitlines()
        stage = re.match(r"Failed: ([^,]+),", reason)  # flows.console.failure_text
        source = Source(flow.name, flow_run.name, url_for(flow_run) or "")
        send(source, state.name.lower(), reason, stage[1] if stage else "", rest)


HOOKS = {"on_failure": [_flow_ended], "on_crashed": [_flow_ended]}


def send(source: Source, event: str, reason: str, stage: str = "", lines: list[str] | tuple[str, ...] = ()) -> None:
    """Tell everybody the environment names what came over ``source``: ``event`` is failed, crashed, refused, stuck or
    loss spike.

    ``lines`` are the last ones of the stage. What cannot be delivered is named on stderr.
    """
    title = f"{source.flow} {source.run}: {event}" + (f" in {stage}" if stage else "")
    text = "\n".join([title, reason, *lines, "", f"{source.url}  (on {socket.gethostname()})"])
    alert = {**vars(source), "event": event, "stage": stage, "reason": reason, "lines": list(lines), "text": text}
    for setting, deliver in (("VERDICT_ALERT_WEBHOOK", _post), ("VERDICT_ALERT_SMTP", _mail)):
        if address := os.environ.get(setting):
            try:
                deliver(address, title, alert)
            except Exception as e:  # whatever a server answers, the run it is about goes on
                # Not the address, nor what quotes it: it may hold a secret.
                why = str(e) if isinstance(e, OSError | UserError) else f"{type(e).__name__}, is the address right?"
                print(f"{setting}: nobody was told of: {title} ({' '.join(why.split())})", file=sys.stderr)


def _post(url: str, title: str, alert: dict) -> None:
    request = urllib.request.Request(url, json.dumps(alert).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
        answer.read()


def _mail(address: str, title: str, alert: dict) -> None:
    server = urllib.parse.urlsplit(address)
    people = dict(urllib.parse.parse_qsl(server.query))
    if not people.get("to") or server.scheme not in ("smtp", "smtps"):
        raise UserError("it must be smtp://host/?to=address or smtps://...")
    message = EmailMessage()
    message["Subject"], message["To"] = title, people["to"]
    message["From"] = people.get("from", f"verdict@{socket.getfqdn()}")
    message.set_content(alert["text"])
    context = ssl.create_default_context()
    encrypted = server.scheme == "smtps"
    connect = smtplib.SMTP_SSL if encrypted else smtplib.SMTP
    options = {"context": context} if encrypted else {}
    with connect(server.hostname, server.port or 0, timeout=TIMEOUT_SECONDS, **options) as smtp:
        smtp.ehlo()
        if not encrypted and smtp.has_extn("starttls"):
            smtp.starttls(context=context)
        if server.username:
            smtp.login(urllib.parse.unquote(server.username), urllib.parse.unquote(server.password or ""))
        smtp.send_message(message)


@contextlib.contextmanager
def watching(source: Source, stage: str, root: Path, pipeline: str) -> Iterator[Callable[[str], None]]:
    """Send an alert when ``stage``, as ``pipeline`` runs it, says nothing for VERDICT_STALL_MINUTES, and when its
    trainer leaves out steps whose gradient spiked. The value is called with each of its lines."""
    last = [time.monotonic(), "it has said nothing yet"]
    over = threading.Event()

    def hear(line: str) -> None:
        last[:] = time.monotonic(), line

    def look() -> None:
        curve = Curve(root, stage, "skipped_steps", pipeline)
        step, skipped, told_skipped, told_silent = 0, 0.0, 0.0, None
        patience = _stall_minutes() * 60
        ended = False
        while not ended:
            ended = over.wait(POLL_SECONDS)
            heard, line = last
            if patience and not ended and time.monotonic() - heard > patience and told_silent != heard:
                told_silent = heard
                send(source, "stuck", f"no line for {patience / 60:g} minutes", stage, [line])
            for step, skipped in curve.news():  # noqa: B007
                pass  # the last one counts
            if skipped > told_skipped:
                told_skipped = 2 * skipped  # a run that goes to pieces is not an alert a second
                reason = f"{skipped:.0f} left out up to step {step}: the gradient was not finite, or far above the rest"
                send(source, "loss spike", reason, stage, [line])

    thread = threading.Thread(target=look, name=f"watch-{stage}", daemon=True)
    thread.start()
    try:
        yield hear
    finally:
        over.set()
        thread.join()


def _stall_minutes() -> float:
    try:
        return float(os.environ.get("VERDICT_STALL_MINUTES", STALL_MINUTES))
    except ValueError:
        return STALL_MINUTES
