"""The verbs of the command line and the stages behind them, named and ordered in one place.

Why a table of strings: ``recsys --help`` and a dry run answer without importing Ray, torch or MLflow. This module
imports nothing of the project.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Stage:
    """One stage: the artefacts it reads and writes, as patterns over ``{run}``, ``{dataset}`` and the like."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]


@dataclass(frozen=True)
class Verb:
    """One verb: the function ``module:name`` that does it, called with the configuration and the open run folder."""

    target: str
    summary: str
    stages: tuple[str, ...]


STAGES: Final[dict[str, Stage]] = {
    "prepare": Stage(("{source}",), ("{dataset}/",)),
    "train": Stage(("{dataset}/",), ("{run}/checkpoints/", "{run}/model/")),
    "evaluate": Stage(("{dataset}/", "{run}/model/"), ("{run}/metrics.json", "{run}/report.html")),
    "register": Stage(
        ("{dataset}/", "{run}/model/", "{run}/metrics.json"), ("{run}/bundle/", "models:/{name}@{alias} in {tracking}")
    ),
    "recommend": Stage(("{recommender}",), ("{run}/recommendations.parquet",)),
}

VERBS: Final[dict[str, Verb]] = {
    "run": Verb(
        "pipelines.run:run",
        "prepare, train, evaluate and register in one MLflow run",
        ("prepare", "train", "evaluate", "register"),
    ),
    "prepare": Verb("pipelines.prepare:prepare", "read the source and write the prepared dataset", ("prepare",)),
    "train": Verb("pipelines.train:train", "train the model on the prepared dataset", ("train",)),
    "evaluate": Verb(
        "pipelines.evaluate:evaluate", "rank the test part, compare with the baselines, write the report", ("evaluate",)
    ),
    "register": Verb("pipelines.register:register", "put the trained model into the MLflow registry", ("register",)),
    "recommend": Verb(
        "pipelines.recommend:recommend", "write the top items of every user to a Parquet file", ("recommend",)
    ),
}

LATER: Final[tuple[str, ...]] = ("tune", "update", "promote", "pull", "serve", "submit", "doctor")
