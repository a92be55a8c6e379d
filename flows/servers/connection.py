"""Connect a flow to Prefect's API, or explain in one line why that is impossible. Not for starting a server."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from stages.contract.errors import UserError
from stages.contract.secrets import redact

if TYPE_CHECKING:
    import httpx
    from prefect.settings.legacy import Setting

ANSWER_SECONDS = 10
OWN = "For the servers of `make serve`: . .verdict/serve.env"


@contextmanager
def connected(url: str, login: str | None = None) -> Iterator[None]:
    """Record the block's flow runs at the API at ``url``, with ``login`` (user:password) or the one that is configured.

    Raises:
        UserError: the server refused a request, or was lost.
    """
    import httpx
    from prefect import settings

    values: dict[Setting, str | bool] = {settings.PREFECT_API_URL: url}
    if login:
        values[settings.PREFECT_API_AUTH_STRING] = login
        values[settings.PREFECT_CLIENT_CSRF_SUPPORT_ENABLED] = True
    with settings.temporary_settings(values):
        try:
            yield
        except (httpx.HTTPError, RuntimeError) as e:
            cause = e.__cause__ if isinstance(e, RuntimeError) else e  # Prefect's client wraps the first request's
            if not isinstance(cause, httpx.HTTPError):
                raise
            raise UserError(_explain(url, cause)) from None


def check_server(url: str) -> None:
    """Send the configured API at ``url`` a request that needs the login.

    Raises:
        UserError: nobody answers, the login is wrong or missing, or it is no Prefect server of this version.
    """
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_REQUEST_TIMEOUT, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    impatient = {PREFECT_API_REQUEST_TIMEOUT: ANSWER_SECONDS, PREFECT_CLIENT_MAX_RETRIES: 1}
    try:
        with temporary_settings(impatient), get_client(sync_client=True) as client:
            client.raise_for_api_version_mismatch()
            client.read_flows(limit=1)
    except Exception as e:  # Prefect's client fails in any way on another program's answers
        raise UserError(_explain(url, e.__cause__ or e)) from None


def _explain(url: str, error: BaseException) -> str:
    """Return one line on what ``error`` of the server at ``url`` means and what to do."""
    import httpx

    place, why = redact(url), redact(" ".join(str(error).split()))
    if isinstance(error, httpx.HTTPStatusError):
        return _explain_status(place, error.response)
    if isinstance(error, httpx.TimeoutException):
        return f"Prefect's server at {place} does not answer within {ANSWER_SECONDS} s. Is it busy, or behind a proxy?"
    if isinstance(error, httpx.HTTPError):
        return f"no Prefect server answers at {place}. Start it (make serve) or unset PREFECT_API_URL. ({why})"
    if "incompatible versions" in why:
        return f"Prefect's server at {place} is of another version. {why}"
    return f"PREFECT_API_URL is {place}, and the server there is not Prefect's API, whose address ends in /api."


def _explain_status(place: str, response: "httpx.Response") -> str:
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY

    status = f"{response.status_code} {response.reason_phrase}"
    if "CSRF" in response.text:
        return f"Prefect's server at {place} asks for CSRF tokens: set PREFECT_CLIENT_CSRF_SUPPORT_ENABLED=true."
    if response.status_code not in (401, 403):
        return f"Prefect's server at {place} answers {status}. Is PREFECT_API_URL right? It ends in /api."
    if PREFECT_API_AUTH_STRING.value():
        return f"Prefect's server at {place} refuses PREFECT_API_AUTH_STRING ({status}): a wrong login. {OWN}"
    if PREFECT_API_KEY.value():
        return f"Prefect's server at {place} refuses PREFECT_API_KEY ({status}): a wrong key, or of another workspace."
    return f"Prefect's server at {place} asks for a login: set PREFECT_API_AUTH_STRING to user:password. {OWN}"
