"""Reach servers of this machine without a company's proxy: none of them can reach 127.0.0.1 of this machine."""

import ipaddress
import os
from collections.abc import MutableMapping
from urllib.parse import urlsplit

HOSTS = ("127.0.0.1", "localhost", "::1")
SETTINGS = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "PREFECT_API_URL")  # addresses that may name another one


def without_proxy(environment: MutableMapping[str, str] = os.environ) -> None:
    """Name this machine's own addresses in NO_PROXY of ``environment``, which requests, httpx, urllib and curl honor.

    Both spellings are set, since requests and urllib read ``no_proxy`` first.
    """
    stated = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    names = [name.strip() for name in stated.split(",") if name.strip()]
    hosts = [*HOSTS, *(host for name in SETTINGS if is_loopback(host := _host(environment.get(name, ""))))]
    if "*" not in names:
        names += [host for host in dict.fromkeys(hosts) if host not in names]
    environment["no_proxy"] = environment["NO_PROXY"] = ",".join(names)


def is_loopback(host: str) -> bool:
    """Whether ``host`` is this machine, by an address or as localhost."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""
