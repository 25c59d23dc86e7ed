"""A model holder that loads and follows the models itself, as an actor of Ray Serve's controller.

``recsys serve`` does this in its own process; an application that Ray Serve deploys has no such
process. Why a module of its own: Serve pickles the module of such an actor's class by value.
"""

from __future__ import annotations

import threading
from typing import Any

import ray

from pipelines.following.sides import check_log, note_log, sides_of, stock_of
from pipelines.plumbing.session import quiet
from recsys.config import ServeConfig, build_config
from recsys.registry.mlflow_client import tracking_uri
from recsys.serving.model_holder import ModelHolder, Offering


@ray.remote
class FollowingHolder(ModelHolder):
    """A model holder that loads its models when it starts; ``args`` are those of the
    application.
    """

    def __init__(self, args: dict[str, Any]) -> None:
        quiet()
        config = build_config(args, "args")
        check_log(config.serve)
        super().__init__(stock_of(config.serve), config.serve.stock_file)
        self._sides, self._offering = sides_of(config), Offering(self)
        if config.serve.log:
            note_log(
                config.serve.log,
                [side.followed.uri for side in self._sides],
                tracking_uri(config.tracking, config.run.dir),
                _say,
            )
        for side in self._sides:
            self._offering.offer(*side.load(_say), side.side)
        threading.Thread(
            target=self._keep_following, args=(config.serve,), daemon=True, name="following"
        ).start()

    def _keep_following(self, settings: ServeConfig) -> None:
        never = threading.Event()
        while not never.wait(settings.poll_seconds):
            for side in self._sides:
                side.follow(self._offering, _say, never)


def _say(line: str) -> None:
    """Write a line to the actor's log."""
    print(line, flush=True)
