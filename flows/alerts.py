"""Send alerts about a run: failed, crashed, refused by the gate, stuck, loss spike. Without a setting, none is sent.

VERDICT_ALERT_URLS  Apprise addresses, separated by spaces, one a service: json://host/path (a webhook; jsons:// for
                    https), slack://..., msteams://..., mailtos://user:password@host?to=a@example.org

A flow sends alerts with ``@flow(**alerts.HOOKS)``: hooks and not Prefect's automations, which `make run`'s temporary
server would not outlive. Cancelled runs send no alert. Nothing here raises.
"""

import contextlib
import logging
import os
import re
import socket
import sys
from dataclasses import dataclass
from typing import Any

from stages.contract.secrets import redact

SETTING = "VERDICT_ALERT_URLS"
REPLACED = {  # a setting of version 0.1 -> its new form
    "VERDICT_ALERT_WEBHOOK": "jsons://host/path for https://host/path, json:// for http://",
    "VERDICT_ALERT_SMTP": "mailto://user:password@host?to=a@example.org, mailtos:// for smtps://",
}


@dataclass(frozen=True)
class AlertSource:
    """The flow run of an alert: the flow's name, the run's name and address."""

    flow: str
    run: str
    url: str


def this_run() -> AlertSource:
    """Return the current flow run."""
    from prefect.runtime import flow_run

    return AlertSource(flow_run.flow_name, flow_run.name, flow_run.ui_url or "")


def _flow_ended(flow: Any, flow_run: Any, state: Any) -> None:
    """Send an alert for a flow run that failed (in its own process) or crashed (in its worker's). A Prefect hook."""
    if flow_run.parent_task_run_id:  # the flow that called it fails for the same reason and sends the alert
        return
    from prefect.utilities.urls import url_for

    with contextlib.suppress(Exception):  # Prefect would log a second error
        reason, *rest = (state.message or "no reason was given").splitlines()
        stage = re.match(r"Failed: ([^,]+),", reason)  # flows.console.failure_text
        source = AlertSource(flow.name, flow_run.name, url_for(flow_run) or "")
        send(source, state.name.lower(), reason, stage[1] if stage else "", rest)


HOOKS: dict[str, list[Any]] = {"on_failure": [_flow_ended], "on_crashed": [_flow_ended]}


def replaced_settings() -> list[str]:
    """Return a line for each setting of an older version that is set and no longer read."""
    return [
        f"{name} is no longer read, so nobody gets an alert. Set {SETTING}: {new}."
        for name, new in REPLACED.items()
        if os.environ.get(name) and not os.environ.get(SETTING)
    ]


def send(
    source: AlertSource, event: str, reason: str, stage: str = "", lines: list[str] | tuple[str, ...] = ()
) -> None:
    """Send an alert about ``source`` to every address of VERDICT_ALERT_URLS, without passwords.

    Args:
        event: failed, crashed, refused, stuck or loss spike.
        reason: one line.
        lines: the stage's last lines.

    An address that refuses the alert is printed to stderr, by its service only: the rest may be a secret.
    """
    title = f"{source.flow} {source.run}: {event}" + (f" in {stage}" if stage else "")
    body = "\n".join([reason, *lines, "", f"{source.url}  (on {socket.gethostname()})"])
    for address in os.environ.get(SETTING, "").split():
        if (problem := _notify(address, redact(title), redact(body))) is not None:
            service = address.partition("://")[0] if "://" in address else "?"
            print(redact(f"{SETTING}: {service}://... did not take the alert: {title} ({problem})"), file=sys.stderr)


def _notify(address: str, title: str, body: str) -> str | None:
    """Send to one address; return the reason if that failed."""
    import apprise

    service = apprise.Apprise()
    try:
        if not service.add(address):
            return "no address that Apprise knows; see its list of services"
        with apprise.LogCapture(level=logging.WARNING, fmt="%(message)s") as log:
            if service.notify(body=body, title=title, body_format=apprise.NotifyFormat.TEXT):
                return None
            last = (log.getvalue().splitlines() or ["no answer"])[-1]
    except Exception as e:  # whatever a service answers, the run continues
        return type(e).__name__
    return "the service refused it, or does not answer" if _quotes(address, last) else last


def _quotes(address: str, text: str) -> bool:
    """Whether ``text`` repeats a part of ``address`` that may be a secret: any but its service and host."""
    userinfo, _, rest = address.partition("://")[2].rpartition("@")
    secret = re.split(r"[/:?&=@]+", f"{userinfo}/{rest.partition('/')[2]}")
    return any(len(part) > 3 and part in text for part in secret)
