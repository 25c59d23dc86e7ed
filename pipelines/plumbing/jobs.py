"""The job server of a Ray cluster: connect without hanging, and follow a log over lost
connections.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from recsys.errors import ConfigError

DEFAULT_ADDRESS: Final = "http://127.0.0.1:8265"
_CONNECT_S, _ANSWER_S, _READ_TIMEOUT_S, _PAUSE_S, _TRIES = 5.0, 60.0, 60.0, 1.0, 10
ENDED: Final = ("SUCCEEDED", "FAILED", "STOPPED")


class LostError(Exception):
    """The cluster stopped answering while a job was followed."""


def address_of(given: str) -> str:
    """Address of the job server: ``submit.address``, the environment, or Ray's default on this
    machine.

    Raises
    ------
    ConfigError
        The address is not an http(s) URL with a host.

    Examples
    --------
    >>> address_of("http://127.0.0.1:8265/")
    'http://127.0.0.1:8265'
    """
    address = given or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS
    parts = urlsplit(address)
    try:
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None
        good = good and (parts.port is None or parts.port > 0)
    except ValueError:  # the port is not a number
        good = False
    if not good:
        raise ConfigError(
            f"submit.address: got {address.rsplit('@', 1)[-1]!r}, expected http://HOST:PORT of the"
            " cluster's dashboard (default port 8265); it listens on the loopback address of the"
            " head node: open a tunnel with `ray dashboard cluster.yaml` or `ssh -L"
            " 8265:127.0.0.1:8265 HEAD`"
        )
    return address.rstrip("/")


def connect(given: str) -> Any:
    """A ``JobSubmissionClient`` with a timeout for every request.

    Raises
    ------
    ConfigError
        Nothing answers at the address, it is not a Ray cluster, or it wants another token.
    """
    address = address_of(given)
    os.environ["RAY_API_SERVER_ADDRESS"] = (
        address  # otherwise the environment would override the argument
    )
    if "RAY_AUTH_MODE" not in os.environ and _has_token():
        os.environ["RAY_AUTH_MODE"] = "token"  # a cluster without authentication ignores it
        from ray._raylet import Config  # type: ignore[attr-defined]

        Config.initialize("")  # Ray read the environment when it was imported; read it again
    import requests
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for name in ("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"):
        logging.getLogger(name).setLevel(logging.ERROR)

    # Ray's client has no time limit, so a lost tunnel would hang forever
    class Client(JobSubmissionClient):
        def _do_request(self, method: str, endpoint: str, **kwargs: Any) -> Any:
            return super()._do_request(
                method, endpoint, **{"timeout": (_CONNECT_S, _ANSWER_S), **kwargs}
            )

    try:
        return Client(address)
    except AuthenticationError:
        raise ConfigError(
            f"submit.address: the cluster at {address} requires its token, but ours is missing or"
            " different; put the cluster's token into ~/.ray/auth_token (mode 600), or set"
            " RAY_AUTH_TOKEN_PATH to its file"
        ) from None
    except (
        ConnectionError,
        requests.RequestException,
        RuntimeError,
        ValueError,
        KeyError,
    ) as error:
        raise ConfigError(
            f"submit.address: no Ray job server answers at {address} ({type(error).__name__});"
            " start a cluster (`ray up cluster.yaml`, `ray start --head`), open its tunnel (`ray"
            " dashboard cluster.yaml`), or correct the address"
        ) from None


def nodes_summary(client: Any) -> Any:
    """The dashboard's list of machines, or None if it gives none."""
    try:
        return client._do_request("GET", "/nodes?view=summary").json()
    except Exception:  # another release of the dashboard, or a proxy: not a reason to refuse
        return None


def details(client: Any, job: str) -> Any:
    """The cluster's description of a job.

    Raises
    ------
    ConfigError
        The cluster does not know the job.
    RuntimeError
        The cluster reports another error.
    """
    try:
        return client.get_job_info(job)
    except RuntimeError as error:
        if "404" not in str(error):
            raise
        raise ConfigError(f"the cluster has no job {job!r}; see `recsys submit list`") from None


def follow(client: Any, job: str, write: Callable[[str], None]) -> Any:
    """Write a job's log as it comes until the job ends, then return the cluster's description of
    it.

    A broken or silent connection is opened again; lines that were written are not written again.

    Parameters
    ----------
    client : Any
        Ray's ``JobSubmissionClient``.
    job : str
        Id of the job.
    write : Callable[[str], None]
        Called with each new piece of the log.

    Returns
    -------
    Any
        Ray's ``JobDetails`` of the ended job.

    Raises
    ------
    LostError
        The cluster stopped answering.
    ConfigError
        The cluster does not know the job.
    """
    log, failures = _Log(write), 0
    while True:
        found = None
        try:
            asyncio.run(_tail(client, job, log))
            found = details(client, job)
            failures = 0
        except ConfigError:
            raise
        except Exception as error:  # aiohttp, requests and Ray raise different types
            failures += 1
            if failures == _TRIES:
                raise LostError(f"the cluster stopped answering ({type(error).__name__})") from None
        if found is not None and str(found.status.value) in ENDED:
            # the stream may have ended before the last lines
            log.show(0, client.get_job_logs(job))
            return found
        time.sleep(_PAUSE_S)


class _Log:
    """The position in a log; every new connection sends the log from its start."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self.write, self.length = write, 0

    def show(self, start: int, text: str) -> None:
        """Write the new part of a text that begins at position ``start`` of the log."""
        new = text[max(0, self.length - start) :]
        if new:
            self.write(new)
            self.length = start + len(text)


async def _tail(client: Any, job: str, log: _Log) -> None:
    """Show the log until the stream ends or is silent for too long."""
    seen = 0
    stream = client.tail_job_logs(job)
    try:
        while True:
            # a connection that is lost without a word looks like a quiet job
            text = await asyncio.wait_for(anext(stream), _READ_TIMEOUT_S)
            log.show(seen, text)
            seen += len(text)
    except (StopAsyncIteration, TimeoutError):
        return
    finally:
        await stream.aclose()


def _has_token() -> bool:
    token_path = os.environ.get("RAY_AUTH_TOKEN_PATH") or str(Path.home() / ".ray" / "auth_token")
    return bool(os.environ.get("RAY_AUTH_TOKEN")) or os.path.isfile(token_path)
