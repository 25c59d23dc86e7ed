"""Stage ``recommend``: the top items of every user → RUN/recommendations.parquet.

With many users it runs on Ray Data. The model is ``recommend.model``, by default RUN/bundle, the
files that this run registered. With ``recommend.requests`` it answers a file of requests instead,
for example for cold-start users or newest events → RUN/answers/NAME.parquet, or ``recommend.out``.
The time of all requests is ``recommend.at``, by default the time of the newest event that the model
knows.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.plumbing.run_folder import RunFolder
from pipelines.plumbing.session import quiet, ray_session
from recsys.bundle.description import read_info
from recsys.config import Config, RecommendConfig
from recsys.data.split import parse_time
from recsys.errors import ConfigError
from recsys.registry.mlflow_client import tracking_uri
from recsys.registry.resolve import resolve
from recsys.serving.request_files import read_requests
from recsys.serving.request_parsing import parse_rules
from recsys.serving.stock import read_stock
from recsys.storage.temporary import temporary
from recsys.storage.uris import is_remote, without_query


def recommend(config: Config, folder: RunFolder) -> str:
    """Write the recommendations and return their path."""
    quiet()
    settings = config.recommend
    # first: a bad file stops here
    requests = read_requests(settings.requests) if settings.requests else None
    parse_rules(settings.rules, "recommend.rules")
    stock = read_stock(settings.stock_file, "recommend.stock_file")
    with folder.progress.stage("recommend"):
        bundle = (
            resolve(settings.model, tracking_uri(config.tracking, config.run.dir))
            if settings.model
            else folder.bundle
        )
        info = read_info(bundle)
        folder.progress(
            f"{settings.model or folder.shown(bundle)}: trained on {info.dataset.get('name', '')}, "
            f"created {info.created}"
        )
        from recsys.serving.batch import is_small, recommend_all

        here = config.ray.address == "local" and is_small(bundle, settings.batch_size, requests)
        with _written(config.recommend, folder) as (output, shown):
            done = recommend_all(
                bundle,
                output,
                settings.k,
                settings.exclude_seen,
                settings.batch_size,
                requests=requests,
                at=parse_time(settings.at, "recommend.at") // 1_000_000 if settings.at else None,
                rules=settings.rules,
                out_of_stock=stock.out,
                session=None if here else ray_session(config.train, config.ray),
            )
        folder.progress(
            f"{done.num_rows:,} recommendations for {done.num_users:,} users ({done.num_fallback:,}"
            f" by popularity) in {shown}"
        )
    return shown


@contextmanager
def _written(recommend: RecommendConfig, folder: RunFolder) -> Iterator[tuple[Path, str]]:
    """The file to write in the block, and the path where it is after the block."""
    out = recommend.out
    if is_remote(out):
        from recsys.storage.mirror import Mirror

        parent, _, name = without_query(out).rpartition("/")
        options = out[len(without_query(out)) :].lstrip("/")
        with temporary() as aside:
            yield Path(aside) / name, out
            Mirror(Path(aside), parent + options).publish(Path(aside) / name)
        return
    output = Path(out) if out else folder.root / recommend.answers
    if output.is_dir():
        raise ConfigError(
            f"recommend.out: {out} is a folder, expected a file, such as"
            f" {out.rstrip('/')}/answers.parquet"
        )
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"recommend.out: cannot create the folder {output.parent} ({error.strerror}); choose"
            " another file"
        ) from None
    yield output, out or folder.shown(output)
    if not out:
        folder.publish(output)


if __name__ == "__main__":
    from pipelines.cli import main

    sys.exit(main(["recommend", *sys.argv[1:]]))
