"""The verbs of the command line and the stages behind them, named and ordered in one place.

Why a table of strings: ``recsys --help`` and a dry run then need no import of Ray, torch or MLflow.
This module imports nothing of the project, so the table can also name verbs of ``tune``, a package
that imports ``pipelines``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from recsys.config import TuneConfig, UpdateConfig
    from recsys.config.compare import CompareConfig


@dataclass(frozen=True)
class Stage:
    """One stage: the artefacts that it reads and writes, as patterns such as ``{run}/model/``."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]


@dataclass(frozen=True)
class Verb:
    """One verb: ``target`` is the function ``module:name`` that runs it.

    The function gets the configuration and the open run folder. A verb with its own ``usage`` opens
    no run folder: its function gets the words after the verb and returns the exit code.
    """

    target: str
    summary: str
    stages: tuple[str, ...]
    preview: str = ""  # ``module:name`` of a function that returns further lines for a dry run
    usage: str = ""
    locks: bool = True  # whether the verb locks the run folder against other commands
    reads_model: bool = True  # whether it reads the section ``model``; auto chooses a missing one
    sections: tuple[str, ...] = ()  # the sections of the configuration that it reads, for its help
    short: tuple[tuple[str, str], ...] = ()  # one-word options, and the key of each
    options: tuple[tuple[str, str], ...] = ()  # one-word options, each with its meaning
    input: str = "--config FILE"  # the first words of its line of usage


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
    "sweep": Stage(
        ("{dataset}/", "{space}"), ("{run}/trials/", "{run}/sweep.html", "{run}/best.yaml")
    ),
    "best": Stage(
        ("{dataset}/", "{run}/best.yaml"),
        ("{run}/best/, a run folder", "models:/{name}@{alias} in {tracking}"),
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
        (
            "{run}/promotion.json",
            "{run}/promotion.md",
            "models:/{name}@champion in {tracking}, if the gate agrees",
        ),
    ),
    "compare": Stage(
        ("config.yaml, metrics.json and model/ of {compared}", "the dataset of the first"),
        ("{comparison}",),
    ),
    "logs": Stage(("{logs}", "{outcomes}", "{estimated}"), ("{comparison}",)),
    "pull": Stage(("{pulled} in {tracking}",), ("{target}/",)),
    "export": Stage(("{exported}",), ("{export}/",)),
    "dashboard": Stage(
        ("the run folders in {shown}", "runs and registered models in {tracking}"), ()
    ),
    "referee": Stage(("{refereed}",), ("{verdict}",)),
    "forget": Stage(
        (
            "{dataset}/",
            "{run}/model/",
            "every version in {tracking}",
            "noted copies and forget.also",
        ),
        (
            "{dataset}/ and {dataset}.forgotten.json",
            (
                "{run}/model/, metrics.json, report.html, bundle/ and a new version for each"
                " deleted one"
            ),
            "logs of answers, exports and copies without them",
        ),
    ),
    "prove": Stage(
        ("all files of {run}, {dataset}, {tracking} and the caches",),
        ("{run}/forgotten/proof-TIME.json",),
    ),
    "parent": Stage(("{parent}",), ()),
    "strata": Stage(("{dataset}/",), ("{run}/bundle/", "models:/{name}@{alias} in {tracking}")),
    "feedback": Stage(
        ("{feedback}",), ("{run}/bundle/", "models:/{name}@{alias} in {tracking}, if it is better")
    ),
}

_RESUME: Final = ("--resume", "continue an interrupted run of the same configuration (run.resume)")
_ABLATE: Final = (
    "--ablate",
    "evaluate without each granularity, with each alone, and with other fusions"
    " (evaluate.ablation full)",
)
VERBS: Final[dict[str, Verb]] = {
    "init": Verb(
        "pipelines.init:command",
        "inspect your data files and write a configuration for them; comments give the reasons",
        (),
        usage="recsys init FILE… [--out recsys.yaml] [--force]",
        options=(
            ("FILE…", "files, folders or globs, local or remote: events, and all other tables"),
            ("--out FILE", "the configuration to write, default recsys.yaml"),
            ("--force", "replace the file if it exists"),
        ),
    ),
    "run": Verb(
        "pipelines.run:run",
        "prepare, train, evaluate and register, in one MLflow run",
        ("prepare", "train", "evaluate", "register"),
        "pipelines.plumbing.preflight:preview",
        sections=(
            "run",
            "data",
            "model",
            "train",
            "evaluate",
            "registry",
            "tracking",
            "ray",
            "seed",
        ),
        options=(
            (
                "--budget TIME",
                "time limit of the whole run, e.g. 20m (run.budget); without a section model, a"
                " part of it is used to search for settings",
            ),
            _RESUME,
            _ABLATE,
        ),
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
        options=(_RESUME,),
    ),
    "evaluate": Verb(
        "pipelines.evaluate:evaluate",
        "measure the model and the baselines on the test split and write the report",
        ("evaluate",),
        sections=("run", "evaluate", "train", "tracking", "seed"),
        options=(_RESUME, _ABLATE),
    ),
    "register": Verb(
        "pipelines.register:register",
        "write the trained model to the MLflow registry",
        ("register",),
        sections=("run", "registry", "train", "tracking", "ray"),
    ),
    "recommend": Verb(
        "pipelines.recommend:recommend",
        "write the top items of every user, or answers to a file of requests, to a Parquet file",
        ("recommend",),
        reads_model=False,
        sections=("recommend", "run", "tracking", "ray"),
        short=(("out", "recommend.out"), ("requests", "recommend.requests")),
        options=(
            ("--requests FILE", "answer the requests in a file (recommend.requests)"),
            ("--out FILE", "where to write the answers (recommend.out)"),
        ),
        input="[--config FILE] [--recommend.model MODEL]",
    ),
    "similar": Verb(
        "pipelines.similar:similar",
        "print the items most similar to an item, and how they were found",
        ("similar",),
        locks=False,
        reads_model=False,
        sections=("similar", "run", "tracking"),
        options=(("--item ID", "the item (similar.item)"),),
        input="--config FILE --item ID",
    ),
    "update": Verb(
        "pipelines.update:update",
        "update a registered model with new events or, with update.only fusion, with feedback",
        ("parent", "prepare", "train", "evaluate", "register"),
        sections=(
            "update",
            "run",
            "data",
            "train",
            "evaluate",
            "registry",
            "promote",
            "tracking",
            "ray",
            "seed",
        ),
        options=(
            ("--events FILE …", "files of new events (update.events); earlier events stay"),
            ("--replace", "make the dataset only from the given events (update.replace)"),
            _RESUME,
        ),
        input="[--config FILE] [--update.model MODEL] [--events FILE …]",
    ),
    "forget": Verb(
        "pipelines.forget:forget",
        "remove users from dataset, models, registry and caches, and write a signed proof",
        ("forget", "prove"),
        reads_model=False,
        sections=("forget", "run", "data", "registry", "tracking", "ray"),
        options=(
            ("--user ID …", "users to remove (forget.users)"),
            ("--retrain", "train the models again without them (forget.retrain)"),
            ("--also FOLDER …", "further logs, exports and copies to search (forget.also)"),
        ),
        input="--config FILE --user ID …",
    ),
    "serve": Verb(
        "pipelines.serve:serve",
        "answer requests over HTTP (Ray Serve) until interrupted; reload when the alias moves",
        ("serve",),
        locks=False,
        reads_model=False,
        sections=("serve", "registry", "tracking", "ray"),
    ),
    "tune": Verb(
        "tune.sweep:tune",
        "search for better settings (tune.search trials) or fusion weights of one model (fusion)",
        ("prepare", "sweep", "best"),
        sections=(
            "tune",
            "run",
            "data",
            "model",
            "train",
            "evaluate",
            "registry",
            "tracking",
            "ray",
            "seed",
        ),
    ),
    "submit": Verb(
        "pipelines.submit:command",
        "run a verb as a job on a Ray cluster and follow it; show, stop and list jobs",
        (),
        usage=(
            "recsys submit VERB --config FILE [--section.key VALUE …] [--dry-run]\n"
            "       recsys submit status|logs|stop ID [--submit.address URL]\n"
            "       recsys submit list [--submit.address URL]"
        ),
        sections=("submit",),
    ),
    "doctor": Verb(
        "pipelines.doctor:command",
        "check versions, GPUs, Ray, MLflow, storage and text model, and say how to fix problems",
        (),
        usage="recsys doctor [--config FILE [--section.key VALUE …]] [--doctor.json true]",
        sections=("run", "data", "tracking", "ray"),
    ),
    "promote": Verb(
        "pipelines.promote:promote",
        "make the challenger the champion if it is significantly better; --rollback undoes it",
        ("promote",),
        reads_model=False,
        sections=("promote", "run", "evaluate", "registry", "tracking", "ray"),
        options=(
            ("--force REASON", "promote even if the gate refuses (promote.force)"),
            ("--rollback", "make the previous champion the champion again (promote.rollback)"),
        ),
        input="[--config FILE] [--promote.model MODEL]",
    ),
    "compare": Verb(
        "pipelines.compare:command",
        "compare two finished runs with a paired test, or the model versions in a server's logs",
        ("compare",),
        usage=(
            "recsys compare RUN RUN [--compare.out FILE] [--evaluate.bootstrap N] [--dry-run]\n    "
            "   recsys compare --logs FILE… --feedback FILE… [--compare.target MODEL]"
            " [--compare.out FILE] [--dry-run]"
        ),
        sections=("compare", "evaluate", "seed", "tracking"),
    ),
    "pull": Verb(
        "pipelines.pull:command",
        "copy a registered model to a folder, to deploy it without a tracking server",
        ("pull",),
        usage=(
            "recsys pull models:/NAME@ALIAS DIR [--tracking.uri URI]\n"
            "       recsys pull --config FILE [--pull.model MODEL] --pull.dir DIR"
        ),
        sections=("pull", "registry", "tracking"),
    ),
    "export": Verb(
        "pipelines.export:command",
        "export a model for programs without this package: ONNX, FAISS, Parquet",
        ("export",),
        usage=(
            "recsys export MODEL --to onnx,faiss,parquet --out DIR [--export.users true]\n"
            "       recsys export --config FILE --to FORMAT --out DIR"
        ),
        sections=("export", "run", "tracking"),
    ),
    "ui": Verb(
        "pipelines.ui:command",
        "open a local dashboard: runs, comparisons, recommendations, similar items, the gate",
        ("dashboard",),
        usage=(
            "recsys ui [FOLDER…] [--host HOST] [--port PORT] [--ui.model MODEL] [--tracking.uri"
            " URI] [--dry-run]\n       recsys ui --config FILE [--section.key VALUE …]"
        ),
        sections=("ui", "tracking"),
    ),
    "referee": Verb(
        "pipelines.referee:command",
        "write an evaluation protocol for any library, and score the lists of any library",
        ("referee",),
        usage=(
            "recsys referee prepare --config FILE --out DIR [--referee.mask none] [--referee.sample"
            " 100]\n       recsys referee lists --protocol DIR --out DIR [--evaluate.baselines"
            " '[ease]'] [--runs NAME=RUN …]\n       recsys referee score --protocol DIR --lists"
            " NAME=FILE … [--out DIR]\n       recsys referee page --out FILE referee.json …"
        ),
        sections=("referee", "evaluate", "seed"),
    ),
}

COMPARE_LOGS: Final = Verb(
    "pipelines.comparison.logs:compare_logs",
    "compare the model versions in the logs of a server by their outcomes",
    ("logs",),
)

# Kinds of search, by ``tune.search``; the first is the default.
SEARCHES: Final[dict[str, Verb]] = {
    "trials": Verb(
        "tune.sweep:sweep",
        "trainings over a search space",
        VERBS["tune"].stages,
        "tune.space:preview",
    ),
    "fusion": Verb(
        "tune.weight_search:search_fusion",
        "the weights of a trained model's granularities",
        ("fusion",),
    ),
}

# Kinds of update, by ``update.only``; the first is the default.
UPDATES: Final[dict[str, Verb]] = {
    "all": Verb(
        "pipelines.update:update_all", "warm start on old and new events", VERBS["update"].stages
    ),
    "fusion": Verb(
        "pipelines.update:update_fusion",
        "fit the weights of the granularities to feedback",
        ("parent", "feedback"),
    ),
    "strata": Verb(
        "pipelines.update:update_user_clusters",
        "fit the user clusters (key stratum) to old and new events",
        ("parent", "prepare", "strata"),
    ),
}

FOLLOW: Final = Verb(
    "pipelines.updating.follow:follow",
    "an update for the newest files, again and again, while the next files are prepared",
    VERBS["update"].stages,
)


def chosen_verb(verb: str, update: UpdateConfig, tune: TuneConfig, compare: CompareConfig) -> Verb:
    """The verb, or the kind of it that the configuration chooses.

    Parameters
    ----------
    verb : str
        Name of the verb.
    update : UpdateConfig
        Chooses the kind of ``update``.
    tune : TuneConfig
        Chooses the kind of ``tune``.
    compare : CompareConfig
        Chooses the kind of ``compare``.
    """
    if verb == "update":
        return FOLLOW if update.follow else UPDATES[update.only]
    if verb == "compare" and compare.logs:
        return COMPARE_LOGS
    return SEARCHES[tune.search] if verb == "tune" else VERBS[verb]
