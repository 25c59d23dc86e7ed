"""Stage ``recommend``: the top items of every user → RUN/recommendations.parquet, over Ray Data.

The model is ``recommend.model`` of the registry, or by default RUN/bundle, the very files that this run registered.
``recommend.requests`` asks for newcomers and newest events instead, one request a user.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pipelines.cli import main
from pipelines.folder import RunFolder
from pipelines.session import quiet, ray_session
from recsys.config import Config
from recsys.errors import RequestError
from recsys.registry.bundle import read_info
from recsys.registry.register import resolve
from recsys.registry.tracking import tracking_uri
from recsys.storage.places import read_bytes
from recsys.storage.uris import is_remote


def recommend(config: Config, folder: RunFolder) -> Path:
    """Write the recommendations and return their file."""
    quiet()
    settings = config.recommend
    with folder.progress.stage("recommend"):
        bundle = resolve(settings.model, tracking_uri(config)) if settings.model else folder.bundle
        info = read_info(bundle)
        folder.progress(
            f"{settings.model or folder.shown(bundle)}: trained on {info.dataset.get('name', '')}, made {info.created}"
        )
        with ray_session(config):
            from recsys.serving.batch import recommend_all

            done = recommend_all(
                bundle,
                folder.recommendations,
                settings.k,
                settings.exclude_seen,
                settings.batch_size,
                requests=read_requests(settings.requests) if settings.requests else None,
            )
        folder.publish(folder.recommendations)
        folder.progress(
            f"{done.num_rows:,} recommendations for {done.num_users:,} users ({done.num_fallback:,} by popularity) "
            f"in {folder.shown(folder.recommendations)}"
        )
    return folder.recommendations


def read_requests(path: str) -> list[Any]:
    """The requests of a file of JSON lines.

    Raises:
        RequestError: no such file, or a line that is no JSON.
    """
    try:
        content = read_bytes(path) if is_remote(path) else Path(path).read_bytes()
        lines = content.decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"recommend.requests: {path} cannot be read ({error}); give a file of JSON lines") from None
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            raise RequestError(f"recommend.requests: {path}, line {number} is no JSON ({error})") from None
    return found


if __name__ == "__main__":
    sys.exit(main(["recommend", *sys.argv[1:]]))
