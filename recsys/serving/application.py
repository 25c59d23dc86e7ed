"""The recommender as an application in Ray Serve's own configuration, for deployments such as
KubeRay's RayService.

There no command keeps running. The front and the replicas are those of ``recsys serve``. Two tasks
belong to Serve here: its proxy holds the socket and passes calls to the front, which is a
deployment; its controller starts the model holder together with the replicas and replaces it when
it is lost. Why the front stays behind the proxy: both ways of serving then have the same limits and
refusals.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Final

from ray import serve
from ray.serve.config import DeploymentActorConfig

from recsys.config import ServeConfig
from recsys.serving.access import Tokens, tokens_of
from recsys.serving.deployment import MORE_ONGOING, Replicas, recommender
from recsys.serving.front import Front, limits_of
from recsys.serving.replica import MODEL_HOLDER

FRONT: Final = "front"
_HOLDER_CPUS: Final = 0.5
_FIRST_S: Final = 5.0  # that the front waits for the first replica before it takes calls


@serve.ingress()  # takes the ASGI application from __serve_build_asgi_app__
class FrontDeployment:
    """The front as a deployment.

    It starts to take calls when a replica answers, or after some seconds, so that it can refuse
    calls with 503: Serve's proxy lets calls wait as long as there is no front.

    The tokens are read from the environment of this process, which compares them, so Serve never
    stores them.
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


def application(settings: ServeConfig, holder_class: Any, *holder_arguments: Any) -> Any:
    """The front and the replicas, bound into one Serve application.

    Serve's configuration may change every option of the deployments ``front`` and ``recommender``.

    Parameters
    ----------
    settings : ServeConfig
        The section ``serve`` of the configuration.
    holder_class : Any
        Class of the model holder; its actor loads and follows the models.
    *holder_arguments : Any
        Arguments of that class.
    """
    holder = DeploymentActorConfig(
        name=MODEL_HOLDER,
        actor_class=holder_class,
        init_args=holder_arguments,
        actor_options={"num_cpus": _HOLDER_CPUS},
    )
    answering = recommender(settings).options(deployment_actors=[holder])
    limits = limits_of(settings, Tokens())[0]
    entrance: Any = serve.deployment(
        FrontDeployment,
        name=FRONT,
        max_ongoing_requests=settings.max_bodies + settings.max_waiting + MORE_ONGOING,
        graceful_shutdown_timeout_s=settings.timeout_s,
        graceful_shutdown_wait_loop_s=0.1,
    )
    return entrance.bind(settings, answering.bind(None, limits, settings))
