"""The verbs of the command line and the stages behind them, named and ordered in one place.

Why a table of strings: ``recsys --help`` and a dry run answer without importing Ray, torch or MLflow. This module
imports nothing of the project; that is also how a verb of ``tune``, which stands above the pipelines, is found.
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
    """One verb: the function ``module:name`` that does it, called with the configuration and the open run folder.

    A verb with a ``usage`` of its own works in no run folder: it is called with the words behind it and returns the
    exit code.
    """

    target: str
    summary: str
    stages: tuple[str, ...]
    preview: str = ""  # ``module:name`` of what checks more than the configuration and says it in a dry run
    usage: str = ""
    locks: bool = True  # whether no other command may be at work in the run folder meanwhile
    reads_model: bool = True  # whether it reads the section ``model``, which auto chooses where it is missing
    sections: tuple[str, ...] = ()  # of the configuration that it reads, for its help
    short: tuple[tuple[str, str], ...] = ()  # options of one word, and the key that each stands for


STAGES: Final[dict[str, Stage]] = {
    "prepare": Stage(("{source}",), ("{dataset}/",)),
    "train": Stage(("{dataset}/",), ("{run}/checkpoints/", "{run}/model/")),
    "evaluate": Stage(("{dataset}/", "{run}/model/"), ("{run}/metrics.json", "{run}/report.html")),
    "register": Stage(
        ("{dataset}/", "{run}/model/", "{run}/metrics.json"),
        ("{run}/final/, if train.final", "{run}/bundle/", "models:/{name}@{alias} in {tracking}"),
    ),
    "recommend": Stage(("{recommender}",), ("{answered}",)),
    "similar": Stage(("{similar}",), ()),
    "sweep": Stage(("{dataset}/", "{space}"), ("{run}/trials/", "{run}/sweep.html", "{run}/best.yaml")),
    "best": Stage(
        ("{dataset}/", "{run}/best.yaml"), ("{run}/best/, a run folder", "models:/{name}@{alias} in {tracking}")
    ),
    "fusion": Stage(
        ("{dataset}/", "{run}/model/", "{run}/bundle/"),
        (
            "{run}/fusion/fusion.json",
            "{run}/fusion/report.html",
            "{run}/fusion/bundle/ and models:/{name}@{alias} in {tracking}, if it is better",
        ),
    ),
    "serve": Stage(("{served}",), ("{answers}",)),
    "promote": Stage(
        ("{dataset}/", "{candidate}", "models:/{name}@champion in {tracking}"),
        ("{run}/promotion.json", "{run}/promotion.md", "models:/{name}@champion in {tracking}, if the gate says yes"),
    ),
    "compare": Stage(
        ("config.yaml, metrics.json and model/ of {compared}", "the dataset of the first"), ("{comparison}",)
    ),
    "logs": Stage(("{logs}", "{outcomes}", "{estimated}"), ("{comparison}",)),
    "pull": Stage(("{pulled} in {tracking}",), ("{target}/",)),
    "export": Stage(("{exported}",), ("{export}/",)),
    "dashboard": Stage(("the run folders in {shown}", "runs and registered models in {tracking}"), ()),
    "referee": Stage(("{refereed}",), ("{verdict}",)),
    "forget": Stage(
        ("{dataset}/", "{run}/model/", "every version in {tracking}", "copies: noted, or in forget.also"),
        (
            "{dataset}/ and {dataset}.forgotten.json",
            "{run}/model/, metrics.json, report.html, bundle/ and a new version for those that are deleted",
            "logs of answers, exports and copies without them",
        ),
    ),
    "prove": Stage(("all files of {run}, {dataset}, {tracking} and the caches",), ("{run}/forgotten/proof-TIME.json",)),
    "parent": Stage(("{parent}",), ()),
    "strata": Stage(("{dataset}/",), ("{run}/bundle/", "models:/{name}@{alias} in {tracking}")),
    "feedback": Stage(("{feedback}",), ("{run}/bundle/", "models:/{name}@{alias} in {tracking}, if it is better")),
}

VERBS: Final[dict[str, Verb]] = {
    "init": Verb(
        "pipelines.init:command",
        "look at files of your own and write a configuration for them, with the reason of every line",
        (),
        usage="recsys init FILE… [--out recsys.yaml] [--force]",
    ),
    "run": Verb(
        "pipelines.run:run",
        "prepare, train, evaluate and register in one MLflow run",
        ("prepare", "train", "evaluate", "register"),
        "pipelines.plumbing.preflight:preview",
        sections=("run", "data", "model", "train", "evaluate", "registry", "tracking", "ray", "seed"),
    ),
    "prepare": Verb(
        "pipelines.prepare:prepare",
        "read the source and write the prepared dataset",
        ("prepare",),
        reads_model=False,
        sections=("run", "data", "ray", "seed"),
    ),
    "train": Verb(
        "pipelines.train:train",
        "train the model on the prepared dataset",
        ("train",),
        "pipelines.plumbing.preflight:preview",
        sections=("run", "data", "model", "train", "tracking", "ray", "seed"),
    ),
    "evaluate": Verb(
        "pipelines.evaluate:evaluate",
        "rank the test part, compare with the baselines, write the report",
        ("evaluate",),
        sections=("run", "evaluate", "train", "tracking", "seed"),
    ),
    "register": Verb(
        "pipelines.register:register",
        "put the trained model into the MLflow registry",
        ("register",),
        sections=("run", "registry", "train", "tracking", "ray"),
    ),
    "recommend": Verb(
        "pipelines.recommend:recommend",
        "write the top items of every user, or the answers to a file of requests, to a Parquet file (--out FILE)",
        ("recommend",),
        reads_model=False,
        sections=("recommend", "run", "tracking", "ray"),
        short=(("out", "recommend.out"), ("requests", "recommend.requests")),
    ),
    "similar": Verb(
        "pipelines.similar:similar",
        "print the items that are like an item (--item ID), and how they were found",
        ("similar",),
        locks=False,
        reads_model=False,
        sections=("similar", "run", "tracking"),
    ),
    "update": Verb(
        "pipelines.update:update",
        "go on from a registered model: new events (update.only all), feedback (fusion), strata",
        ("parent", "prepare", "train", "evaluate", "register"),
        sections=("update", "run", "data", "train", "evaluate", "registry", "promote", "tracking", "ray", "seed"),
    ),
    "forget": Verb(
        "pipelines.forget:forget",
        "remove users from dataset, models, registry and caches, and prove it (--user ID …, --retrain)",
        ("forget", "prove"),
        reads_model=False,
        sections=("forget", "run", "data", "registry", "tracking", "ray"),
    ),
    "serve": Verb(
        "pipelines.serve:serve",
        "answer over HTTP by Ray Serve until interrupted; follows the alias of the model",
        ("serve",),
        locks=False,
        reads_model=False,
        sections=("serve", "registry", "tracking", "ray"),
    ),
    "tune": Verb(
        "tune.sweep:tune",
        "search for better settings: many trainings (tune.search trials), or the weights of one model (fusion)",
        ("prepare", "sweep", "best"),
        sections=("tune", "run", "data", "model", "train", "evaluate", "registry", "tracking", "ray", "seed"),
    ),
    "submit": Verb(
        "pipelines.submit:command",
        "send a verb to a Ray cluster as a job and follow it; see, stop and list jobs",
        (),
        usage="recsys submit VERB --config FILE [--section.key VALUE …] [--dry-run]\n"
        "       recsys submit status|logs|stop ID [--submit.address URL]\n"
        "       recsys submit list [--submit.address URL]",
        sections=("submit",),
    ),
    "doctor": Verb(
        "pipelines.doctor:command",
        "look at versions, GPUs, Ray, MLflow, storage and text model, and say what to do",
        (),
        usage="recsys doctor [--config FILE [--section.key VALUE …]] [--doctor.json true]",
        sections=("run", "data", "tracking", "ray"),
    ),
    "promote": Verb(
        "pipelines.promote:promote",
        "make the challenger the champion if it is better beyond doubt; --rollback goes back",
        ("promote",),
        reads_model=False,
        sections=("promote", "run", "evaluate", "registry", "tracking", "ray"),
    ),
    "compare": Verb(
        "pipelines.compare:command",
        "two finished runs on the same test users: a paired test of every metric; or the versions in a server's logs",
        ("compare",),
        usage="recsys compare RUN RUN [--compare.out FILE] [--evaluate.bootstrap N] [--dry-run]\n"
        "       recsys compare --logs FILE… --feedback FILE… [--compare.target MODEL] [--compare.out FILE] [--dry-run]",
        sections=("compare", "evaluate", "seed", "tracking"),
    ),
    "pull": Verb(
        "pipelines.pull:command",
        "a registered model as a folder, for deployment without a tracking server",
        ("pull",),
        usage="recsys pull models:/NAME@ALIAS DIR [--tracking.uri URI]\n"
        "       recsys pull --config FILE [--pull.model MODEL] --pull.dir DIR",
        sections=("pull", "registry", "tracking"),
    ),
    "export": Verb(
        "pipelines.export:command",
        "a model for programs without this package: ONNX, FAISS, Parquet",
        ("export",),
        usage="recsys export MODEL --to onnx,faiss,parquet --out DIR [--export.users true]\n"
        "       recsys export --config FILE --to FORMAT --out DIR",
        sections=("export", "run", "tracking"),
    ),
    "ui": Verb(
        "pipelines.ui:command",
        "a local dashboard in the browser: runs, comparisons, lists for a user or a basket, similar items, the gate",
        ("dashboard",),
        usage="recsys ui [FOLDER…] [--host HOST] [--port PORT] [--ui.model MODEL] [--tracking.uri URI] [--dry-run]\n"
        "       recsys ui --config FILE [--section.key VALUE …]",
        sections=("ui", "tracking"),
    ),
    "referee": Verb(
        "pipelines.referee:command",
        "write a protocol that any library can follow, and judge any library's lists by it",
        ("referee",),
        usage="recsys referee prepare --config FILE --out DIR [--referee.mask none] [--referee.sample 100]\n"
        "       recsys referee lists --protocol DIR --out DIR [--evaluate.baselines '[ease]'] [--runs NAME=RUN …]\n"
        "       recsys referee score --protocol DIR --lists NAME=FILE … [--out DIR]\n"
        "       recsys referee page --out FILE referee.json …",
        sections=("referee", "evaluate", "seed"),
    ),
}

COMPARE_LOGS: Final = Verb(
    "pipelines.compare_logs:compare_logs", "the versions in the logs of a server, by what came of them", ("logs",)
)

# Kinds of search, by ``tune.search``; the first is the default.
SEARCHES: Final[dict[str, Verb]] = {
    "trials": Verb("tune.sweep:sweep", "trainings over a search space", VERBS["tune"].stages, "tune.space:preview"),
    "fusion": Verb("tune.fusion:search_fusion", "the weights of a trained model's granularities", ("fusion",)),
}

# Kinds of update, by ``update.only``; the first is the default.
UPDATES: Final[dict[str, Verb]] = {
    "all": Verb("pipelines.update:update_all", "warm start on old and new events", VERBS["update"].stages),
    "fusion": Verb(
        "pipelines.update:update_fusion", "weights of the granularities from feedback", ("parent", "feedback")
    ),
    "strata": Verb(
        "pipelines.update:update_strata", "strata of users from old and new events", ("parent", "prepare", "strata")
    ),
}

LATER: Final[tuple[str, ...]] = ()
