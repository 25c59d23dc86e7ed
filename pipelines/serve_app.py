"""The application for Ray Serve, ``import_path: pipelines.serve_app:build``; it answers as ``recsys
serve``.

``args`` are sections of the configuration: ``{tracking: {uri: …}, serve: {model: …}}``. Keys that
Serve's own configuration decides are refused: the address, and the number and size of processes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from pipelines.following.holder import FollowingHolder
from recsys.config import RegistryConfig, ServeConfig, TrackingConfig, build_config
from recsys.errors import ConfigError

_WHERE: Final = "args"
_OF_SERVE: Final = {
    "host": "http_options: {host: …}",
    "port": "http_options: {port: …}",
    "replicas": "num_replicas or autoscaling_config of the deployment recommender",
    "cpus": "ray_actor_options: {num_cpus: …} of the deployment recommender",
    "drain_s": "graceful_shutdown_timeout_s of the deployment front",
}
_LOG = logging.getLogger("ray.serve")


def build(args: dict[str, Any]) -> Any:
    """The application for Serve's configuration.

    Environment variables are not expanded here but in the process that reads the model.

    Raises
    ------
    ConfigError
        A key is unknown, decided by Serve's configuration, or missing.
    """
    from recsys.serving.application import application

    config = build_config(args, _WHERE, expand=False)
    _check(config.serve, config.tracking, config.registry, args.get("serve") or {})
    if not config.serve.token_env:
        _LOG.warning(
            "serve.token_env is empty: the model answers everyone who can reach the proxy, without"
            " encryption"
        )
    return application(config.serve, FollowingHolder, args)


def _check(
    serve: ServeConfig, tracking: TrackingConfig, registry: RegistryConfig, given: Mapping[str, Any]
) -> None:
    """Check for keys that have no effect in a deployed application.

    Raises
    ------
    ConfigError
        There is such a key, or the address of the tracking server is missing.
    """
    for key, instead in _OF_SERVE.items():
        if key in given:
            raise ConfigError(
                f"{_WHERE}: serve.{key} is decided by Serve's configuration; remove it and set"
                f" {instead}"
            )
    names = [serve.model or f"models:/{registry.name}@champion", serve.ab.model]
    if not tracking.uri and any(name.startswith("models:") for name in names):
        raise ConfigError(
            f"{_WHERE}: tracking.uri is empty, but {names[0]} needs a tracking server; give its"
            " address"
        )
    if "$" in serve.log:
        raise ConfigError(
            f"{_WHERE}: serve.log: {serve.log} contains a variable, which is not expanded"
            " here; give the whole path"
        )
