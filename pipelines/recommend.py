"""Stage ``recommend``: the top items of every user → RUN/recommendations.parquet, over Ray Data.

The model is ``recommend.model`` of the registry, or by default RUN/bundle, the very files that this run registered.
``recommend.requests`` asks for newcomers and newest events instead, one request a user. All is asked at
``recommend.at``, by default at the time of the newest event that the model knows.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pipelines.cli import main
from pipelines.plumbing.folder import RunFolder
from pipelines.plumbing.session import quiet, ray_session
from recsys.bundle.description import read_info
from recsys.config import Config
from recsys.data.split import parse_time
from recsys.registry.register import resolve
from recsys.registry.tracking import tracking_uri
from recsys.serving.request_files import read_requests
from recsys.serving.requests import parse_rules
from recsys.serving.stock import read_stock


def recommend(config: Config, folder: RunFolder) -> Path:
    """Write the recommendations and return their file."""
    quiet()
    settings = config.recommend
    requests = read_requests(settings.requests) if settings.requests else None  # before anything starts
    parse_rules(settings.rules, "recommend.rules")
    stock = read_stock(settings.stock_file, "recommend.stock_file")
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
                requests=requests,
                at=parse_time(settings.at, "recommend.at") // 1_000_000 if settings.at else None,
                rules=settings.rules,
                out_of_stock=stock.out,
            )
        folder.publish(folder.recommendations)
        folder.progress(
            f"{done.num_rows:,} recommendations for {done.num_users:,} users ({done.num_fallback:,} by popularity) "
            f"in {folder.shown(folder.recommendations)}"
        )
    return folder.recommendations


if __name__ == "__main__":
    sys.exit(main(["recommend", *sys.argv[1:]]))
