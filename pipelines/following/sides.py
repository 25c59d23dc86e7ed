"""The models of a server: look up their names again and again, and hand new versions to the
replicas.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from pipelines.plumbing.user_message import user_message
from recsys.config import Config, RunConfig, ServeConfig, TrackingConfig
from recsys.errors import ConfigError, UserError
from recsys.registry.copy_records import Copy, remember
from recsys.registry.followed_model import FollowedModel
from recsys.registry.mlflow_client import tracking_uri
from recsys.serving.answer_log import check_folder
from recsys.serving.experiment_split import Side
from recsys.serving.stock import Stock, read_stock, write_stock
from recsys.storage.uris import is_remote


class FollowedSide:
    """One side of a server: the name of its model, the version that all replicas use, the one that
    they were last offered, and failed versions.
    """

    def __init__(
        self, side: Side, followed: FollowedModel, version: str, settings: ServeConfig
    ) -> None:
        self.side, self.followed, self.version = side, followed, version
        self._refused, self._is_silent = Refused(settings.poll_seconds, settings.max_retry_s), False
        self._offered, self._patience_s = version, settings.poll_seconds
        self._serial: int | None = None  # of an offer that not all replicas use yet

    @classmethod
    def of(
        cls, side: Side, uri: str, run: RunConfig, serve: ServeConfig, tracking: TrackingConfig
    ) -> FollowedSide:
        """Look up the current version of a name.

        Parameters
        ----------
        side : Side
            ``a`` or ``b``.
        uri : str
            ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, or a folder.
        run : RunConfig
            The MLflow store is next to its folder if ``tracking`` names none.
        serve : ServeConfig
            Names the pauses between attempts.
        tracking : TrackingConfig
            Names the MLflow store.

        Returns
        -------
        FollowedSide
            The side, with the version that the name has now.

        Raises
        ------
        ArtifactError
            There is no such model.
        """
        followed = FollowedModel(
            uri, tracking_uri(tracking, run.dir) if uri.startswith("models:") else ""
        )
        return cls(side, followed, followed.version(), serve)

    def load(self, say: Any) -> tuple[Any, dict[str, Any]]:
        """Load the current version."""
        bundle, about = self.followed.load(self.version)
        users, items = len(bundle.user_ids), bundle.num_items
        say(f"{self.version}: {users:,} users, {items:,} items, made {bundle.info.created}")
        return bundle, about

    def follow(self, server: Any, say: Any, stopped: threading.Event) -> None:
        """Look up the name once, and hand a new version to the replicas.

        Errors are printed and not raised: the current version keeps answering. A version that
        failed is tried again after a pause, which doubles up to a limit.

        Parameters
        ----------
        server : Any
            A server or an offering of a model holder: it has ``offer`` and ``state``.
        say : Any
            Prints a line.
        stopped : threading.Event
            Is set when the server stops; then nothing is waited for.
        """
        try:
            found = self.followed.version()
            self._is_silent = False
        except Exception as error:  # the service survives an unavailable registry
            if not self._is_silent:
                say(
                    f"{self.followed.uri} cannot be looked up ({_why(error)}); {self.version} keeps"
                    " answering"
                )
            # one line for an outage, not one for every poll
            self._is_silent = True
            return
        self._settle(server, say)
        # after a version that only some replicas could load, the earlier one is offered again
        is_offered = found == self._offered and (self._serial is not None or found == self.version)
        # a version that cannot be loaded costs a download at each attempt
        if is_offered or not self._refused.may_try(found):
            return
        try:
            bundle, about = self.followed.load(found)
            self._serial = server.offer(bundle, about, self.side)
            self._offered = found
            # the object store has it; a second copy would stay in memory while replicas load it
            del bundle
        except Exception as error:
            if self._refused.again(found):
                say(
                    f"{found} cannot be loaded ({_why(error)}); {self.version} keeps answering;"
                    " further attempts follow"
                )
            return
        # a replica that has ended must not hold up the next version, so the wait has a limit
        until = time.monotonic() + self._patience_s
        while not (self._settle(server, say) or stopped.is_set() or time.monotonic() >= until):
            time.sleep(0.2)

    def _settle(self, server: Any, say: Any) -> bool:
        """Note whether all replicas use the last offer, or why some cannot; False while neither is
        known.
        """
        if self._serial is None:
            return True
        num_replicas, num_ready, errors = server.state(self._serial)
        # without replicas, as while all restart, nothing uses it yet
        if not errors and not (num_replicas and num_ready == num_replicas):
            return False
        self._serial = None
        if not errors:
            say(f"{self._offered} now answers on {num_ready} replica(s)")
            self.version = self._offered
            self._refused.forget()
        elif self._refused.again(self._offered):
            say(
                f"{self._offered}: {num_ready} of {num_replicas} replicas use it, the others"
                f" failed: {'; '.join(errors)}; further attempts follow"
            )
        return True


def sides_of(config: Config) -> list[FollowedSide]:
    """The sides of the configuration, each with the current version of its model.

    Raises
    ------
    ArtifactError
        There is no such model.
    """
    settings = config.serve
    uris: dict[Side, str] = {"a": settings.model or f"models:/{config.registry.name}@champion"}
    if settings.ab.model:
        uris["b"] = settings.ab.model
    return [
        FollowedSide.of(side, uri, config.run, settings, config.tracking)
        for side, uri in uris.items()
    ]


class Refused:
    """A version that could not be loaded, and the time of the next attempt.

    The pause between attempts doubles up to a limit.
    """

    def __init__(self, first_s: float, longest_s: float) -> None:
        self._first_s, self._longest_s = first_s, max(first_s, longest_s)
        self.forget()

    def forget(self) -> None:
        """Reset after a success."""
        self._version, self._pause_s, self._next = "", self._first_s, 0.0

    def may_try(self, version: str) -> bool:
        """Whether this is another version, or the pause is over."""
        return version != self._version or time.monotonic() >= self._next

    def again(self, version: str) -> bool:
        """Note a failed attempt; return whether it is the first for this version."""
        is_news = version != self._version
        self._pause_s = self._first_s if is_news else min(2 * self._pause_s, self._longest_s)
        self._version, self._next = version, time.monotonic() + self._pause_s
        return is_news


def check_log(settings: ServeConfig) -> None:
    """Check the A/B test and the folder of the log before anything starts.

    Raises
    ------
    ConfigError
        The folder is remote, or cannot be written to, or a setting that the A/B test needs is
        missing.
    """
    if settings.ab.interleave and not settings.ab.model:
        raise ConfigError(
            "serve.ab.interleave is true, but serve.ab.model is empty: there is no second list to"
            " merge; set serve.ab.model to the second model"
        )
    if is_remote(settings.log):
        raise ConfigError(
            f"serve.log: {settings.log} must be a local folder; copy its files to remote storage"
            " later"
        )
    if settings.log:
        check_folder(settings.log)
    elif settings.explore.share:
        raise ConfigError(
            "serve.explore.share is set, but serve.log is empty: the explored"
            " answers would not be stored; set serve.log to a folder"
        )


def note_log(log: str, models: Iterable[str], tracking: str, say: Callable[[str], None]) -> None:
    """Note in each model, for ``recsys forget``, that every machine of the cluster logs its
    answers.

    Parameters
    ----------
    log : str
        Folder of the answer log.
    models : Iterable[str]
        URIs of the served models.
    tracking : str
        URI of the MLflow store.
    say : Callable[[str], None]
        Prints a line for a model in which the log cannot be noted.
    """
    import ray

    # replicas may run on any machine, and each logs to its own disk
    hosts = {str(node["NodeManagerHostname"]) for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]
    for uri in models:
        if not remember([Copy.here("answers", log, host) for host in sorted(hosts)], uri, tracking):
            say(
                f"serve.log cannot be noted in {uri}; when you forget users, call recsys forget …"
                f" --also {log}"
            )


def stock_of(settings: ServeConfig) -> Stock:
    """The items that were out of stock when the server last ended.

    Raises
    ------
    ConfigError
        ``serve.stock_file`` is remote or cannot be written, or no token protects changes of the
        stock.
    """
    if is_remote(settings.stock_file):
        raise ConfigError(f"serve.stock_file: {settings.stock_file} must be a local file")
    if settings.stock_file and not settings.stock_token_env:
        raise ConfigError(
            "serve.stock_file is set, but serve.stock_token_env is empty: no call may change"
            " the stock; set both"
        )
    stock = read_stock(settings.stock_file, "serve.stock_file")
    if settings.stock_file:
        try:
            write_stock(settings.stock_file, stock)
        except OSError as error:
            raise ConfigError(
                f"serve.stock_file: {settings.stock_file} cannot be written ({error}); set it to a"
                " file in a writable folder"
            ) from None
    return stock


def _why(error: Exception) -> str:
    """The first line of an error's message."""
    message = (
        str(error)
        if isinstance(error, UserError)
        else user_message(error) or f"{type(error).__name__}: {error}"
    )
    return message.splitlines()[0] if message else type(error).__name__
