"""The recommender as an application of Ray Serve's own configuration, for where no command stays: KubeRay's RayService.

The front and the replicas are those of ``recsys serve``. Two things are Serve's here: its proxy holds the socket, and
hands calls to the front as a deployment; its controller starts the desk with the replicas, and another one when it is
lost. Why the front stays behind the proxy: what it bounds and refuses is the same in both ways of serving.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Final

from ray import serve
from ray.serve.config import DeploymentActorConfig

from recsys.config import ServeConfig
from recsys.serving.access import Tokens, tokens_of
from recsys.serving.deployment import DESK, MORE_ONGOING, Replicas, recommender
from recsys.serving.front import Front, limits_of

FRONT: Final = "front"
_DESK_CPUS: Final = 0.5
_FIRST_S: Final = 5.0  # for a replica to be heard


@serve.ingress()  # of what __serve_build_asgi_app__ gives
class Entrance:
    """The front as a deployment. It takes calls when a replica answers, or after some seconds, to refuse them (503):
    Serve's proxy lets calls wait for a front that is not there.

    The tokens are read here, from the environment of the process that compares them, so that Serve keeps none.
    """

    async def __init__(self, settings: ServeConfig, handle: Any) -> None:  # type: ignore[misc]
        limits, patience = limits_of(settings, tokens_of(settings))
        replicas = Replicas(handle, limits)
        self._front = Front(limits, patience, replicas)
        with suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_S):
                while replicas.about() is None:
                    await asyncio.sleep(0.05)

    def __serve_build_asgi_app__(self) -> Front:
        return self._front


def application(settings: ServeConfig, desk_class: Any, *desk_arguments: Any) -> Any:
    """Front and replicas bound together; ``desk_class`` is an actor class whose actor loads and follows the models.

    Serve's configuration may change every option of the deployments ``front`` and ``recommender``.
    """
    desk = DeploymentActorConfig(
        name=DESK, actor_class=desk_class, init_args=desk_arguments, actor_options={"num_cpus": _DESK_CPUS}
    )
    answering = recommender(settings).options(deployment_actors=[desk])
    limits = limits_of(settings, Tokens())[0]
    entrance: Any = serve.deployment(
        Entrance,
        name=FRONT,
        max_ongoing_requests=settings.max_bodies + settings.max_waiting + MORE_ONGOING,
        graceful_shutdown_timeout_s=settings.timeout_s,
        graceful_shutdown_wait_loop_s=0.1,
    )
    return entrance.bind(settings, answering.bind(None, limits, settings))
