"""Stage ``similar``: the items most similar to an item, by vectors, by use or by text.

The model is ``similar.model``, by default RUN/bundle. The answer is that of POST /similar.
"""

from __future__ import annotations

import sys

from pipelines.plumbing.run_folder import RunFolder
from pipelines.plumbing.session import quiet
from recsys.config import Config
from recsys.errors import ConfigError
from recsys.registry.mlflow_client import tracking_uri
from recsys.registry.resolve import resolve
from recsys.serving.bundles import read_bundle
from recsys.serving.recommender import Recommender
from recsys.serving.request_parsing import one_request, parse_rules, parse_similar
from recsys.serving.requests import SimilarAnswer
from recsys.serving.similar import WAYS


def similar(config: Config, folder: RunFolder) -> SimilarAnswer:
    """Print and return the items similar to ``similar.item``.

    Raises
    ------
    ConfigError
        No item is given.
    ArtifactError
        There is no such model.
    RequestError
        The model does not know the item, or a rule is wrong.
    """
    quiet()
    settings = config.similar
    if not settings.item:
        raise ConfigError(
            "similar.item is empty; give an item: recsys similar --config FILE --item ID"
        )
    rules = parse_rules(settings.rules, "similar.rules")
    row = {"k": settings.k, **rules, "item_id": settings.item, "by": settings.by}
    with one_request():
        [request] = parse_similar([row])
    bundle = (
        resolve(settings.model, tracking_uri(config.tracking, config.run.dir))
        if settings.model
        else folder.bundle
    )
    recommender = Recommender(read_bundle(bundle))
    with one_request():
        [answer] = recommender.similar.answer([request])
    title = recommender.bundle.titles[recommender.item_row(answer.item_id)]
    say = folder.progress
    say(f"similar to {answer.item_id} ({title}), by {WAYS[answer.by]} ({answer.why})")
    for rank, (item, score, name) in enumerate(
        zip(answer.item_ids, answer.scores, answer.titles, strict=True), 1
    ):
        say(f"{rank + request.offset:>4}  {score:7.4f}  {item}  {name}")
    return answer


if __name__ == "__main__":
    from pipelines.cli import main

    sys.exit(main(["similar", *sys.argv[1:]]))
