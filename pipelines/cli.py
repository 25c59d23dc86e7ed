"""The command line ``recsys VERB --config FILE [--section.key VALUE …] [--dry-run]``.

Why not argparse: every dotted path of the configuration is an option, and :mod:`recsys.config`
already has its checks, defaults and messages. No heavy package is imported before a stage runs.

Exit codes: 0 done; 2 the input or the configuration is wrong (one message, no traceback); 130
interrupted (Ctrl-C); 143 terminated (SIGTERM); 129 the terminal was closed (SIGHUP); 1 a gate
refused (message and reasons, no traceback), or any other error.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pipelines.plumbing.signals import ending_in_order
from pipelines.plumbing.terminal import (
    close_output,
    has_reader,
    printable,
    printable_warnings,
    show_any_text,
)
from pipelines.stages import COMPARE_LOGS, LATER, SEARCHES, STAGES, UPDATES, VERBS, Verb

if TYPE_CHECKING:
    from recsys.config import Config

_ENDINGS: dict[int, str] = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "terminated",
    signal.SIGHUP: "ended because the terminal was closed",
}
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for the driver of a job
_TEXTS = {"force": "promote.force", "item": "similar.item"}
_FLAGS = ("--dry-run", "--help", "--ablate", "--resume", "--rollback", "--retrain", "--replace")
_WORDS = (
    "config",
    "events",
    "user",
    "also",
    "budget",
    *_TEXTS,
    *(flag.removeprefix("--") for flag in _FLAGS),
)
USAGE = "recsys VERB --config FILE [--section.key VALUE …] [--dry-run]"


class UsageError(Exception):
    """The command line cannot be understood."""


@dataclass(frozen=True)
class Arguments:
    """The words after the verb, parsed."""

    config: str | None
    overrides: list[tuple[str, str]]
    dry_run: bool
    help: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    show_any_text()
    try:
        with ending_in_order() as ending, printable_warnings():
            try:
                code = _command(words)
                sys.stdout.flush()
                return code
            except BaseException as error:
                number = ending.number or (
                    signal.SIGINT if isinstance(error, KeyboardInterrupt) else 0
                )
                if number:
                    return _end(number, words)
                raise
    except UsageError as error:
        return _refuse(str(error))
    except Exception as error:
        if isinstance(error, BrokenPipeError) and not has_reader(
            sys.stdout
        ):  # as in `recsys run --help | head`
            close_output()
            return 1
        if type(error).__name__ in (
            "Refusal",
            "Unavailable",
        ):  # by name: our classes may not be imported yet
            print(f"recsys: {printable(str(error))}", file=sys.stderr)
            return 1
        message = user_message(error, words)
        if message is not None:
            return _refuse(message)
        sys.stderr.write(printable(traceback.format_exc()))
        return 1


def user_message(error: BaseException, words: Sequence[str] = ()) -> str | None:
    """The message for a user's mistake that caused an exception, also in a Ray worker, or None;
    ``words`` is the command line.

    Ray wraps the exception of a task (``cause``), and Ray Train wraps the exceptions of its workers
    (``worker_failures``). The text of the outer exception is a traceback; the inner one has the
    message.
    """
    from recsys.errors import UserError

    if isinstance(error, UserError) and not hasattr(error, "cause"):
        return _with_cure(error, words)  # without the imports below, which take seconds
    from recsys.registry.tracking import outage
    from recsys.storage.filesystems import message_of

    waiting: list[BaseException] = [error]
    seen: set[int] = set()
    outside: str | None = None
    while waiting:
        current = waiting.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        failures = getattr(current, "worker_failures", None)
        inner = [
            getattr(current, "cause", None),
            getattr(current, "_base_exc", None),
            current.__cause__,
        ]
        inner += list(failures.values()) if isinstance(failures, dict) else []
        found = [cause for cause in inner if isinstance(cause, BaseException)]
        if isinstance(current, UserError) and not hasattr(current, "cause"):
            return _with_cure(current, words)
        outside = outside or message_of(current) or outage(current)
        waiting += found
    return outside


def _with_cure(error: BaseException, words: Sequence[str]) -> str:
    """The message of an error; where a model is not registered, with the option that names the
    newest version.

    >>> from recsys.errors import NotRegistered
    >>> error = NotRegistered("shop@best is not registered", "models:/shop@best", "models:/shop/3")
    >>> _with_cure(error, ["promote"])
    'shop@best is not registered; for its newest version: --promote.model models:/shop/3'
    """
    uri, instead = getattr(error, "uri", ""), getattr(error, "instead", "")
    if not instead or not words:
        return str(error)
    given = [before.partition("=")[0] for before, word in pairwise((*words, "")) if word == uri]
    given += [word.partition("=")[0] for word in words if word.partition("=")[2] == uri]
    option = next((one for one in given if one.startswith("--")), f"--{words[0]}.model")
    return f"{error}; for its newest version: {option} {instead}"


def parse(words: Sequence[str], short: Mapping[str, str] | None = None) -> Arguments:
    """Split the words after the verb.

    Parameters
    ----------
    words : Sequence[str]
        The words after the verb.
    short : Mapping[str, str] | None
        Further one-word options of this verb, and the configuration key of each.

    Raises
    ------
    UsageError
        A word is not an option, an option is unknown, or its value is missing.

    >>> parse(["--config", "a.yaml", "--train.lr", "3e-4", "--seed=-1", "--dry-run"]).overrides
    [('train.lr', '3e-4'), ('seed', '-1')]
    """
    config: str | None = None
    overrides: list[tuple[str, str]] = []
    flags, short = dict.fromkeys(_FLAGS, False), short or {}
    rest, users, also = list(words), list[str](), list[str]()
    while rest:
        word = rest.pop(0)
        word = "--help" if word == "-h" else word
        if word in flags:
            flags[word] = True
            continue
        if not word.startswith("--") or len(word) == 2:
            raise UsageError(
                f"unexpected argument {word!r}; options have the form --section.key VALUE. Usage:"
                f" {USAGE}"
            )
        name, equals, value = word[2:].partition("=")
        if f"--{name}" in flags:
            raise UsageError(f"--{name} takes no value, got {value!r}")
        _check_name(name, short)
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UsageError(f"--{name} needs a value: --{name} VALUE or --{name}=VALUE")
            value = rest.pop(0)
        if name == "events":
            files = [value]
            while rest and not rest[0].startswith("--"):
                files.append(rest.pop(0))
            overrides.append(("update.events", _listed(files)))
        elif name == "config":
            config = value
        elif name == "user":
            while rest and not rest[0].startswith("--"):
                value += f"\n{rest.pop(0)}"
            users += value.split("\n")
        elif name == "also":
            also.append(value)
            while rest and not rest[0].startswith("--"):
                also.append(rest.pop(0))
        elif name == "budget":
            overrides.append(("run.budget", value))
        elif name in short:
            overrides.append((short[name], value))
        elif name in _TEXTS:
            # stays a string: YAML must not read 42 as a number
            quoted = "'{}'".format(value.replace("'", "''"))
            overrides.append((_TEXTS[name], quoted))
        else:
            overrides.append((name, value))
    if users:
        overrides.append(("forget.users", json.dumps(users)))
    if also:
        overrides.append(("forget.also", _listed(also)))
    if flags["--retrain"]:
        overrides.append(("forget.retrain", "true"))
    if flags["--rollback"]:
        overrides.append(("promote.rollback", "true"))
    if flags["--replace"]:
        overrides.append(("update.replace", "true"))
    if flags["--resume"]:
        overrides.append(("run.resume", "true"))
    if flags["--ablate"]:
        overrides.insert(0, ("evaluate.ablation", "full"))  # first: an explicit value wins
    return Arguments(config, overrides, flags["--dry-run"], flags["--help"])


def _check_name(name: str, short: Mapping[str, str]) -> None:
    if name in _WORDS or name in short:
        return
    from pipelines.plumbing.options import is_key, unknown_option

    if not is_key(name):
        raise UsageError(unknown_option(name, [*_WORDS, *short]))


def _listed(texts: Sequence[str]) -> str:
    """Texts as a YAML list of strings.

    >>> _listed(["a b.csv", "it's"])
    "['a b.csv', 'it''s']"
    """
    return "[{}]".format(", ".join("'{}'".format(text.replace("'", "''")) for text in texts))


def _command(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help") or words == ["help"]:
        print(_overview())
        return 0 if words else 2
    if words[0] == "help":
        print(_help_of(words[1:]))
        return 0
    if words[0] == "--version":
        from recsys import __version__

        print(f"multigrain {__version__}")
        return 0
    verb, *rest = words
    if verb in LATER:
        raise UsageError(
            f"`recsys {verb}` comes in a later release; this release has: {', '.join(VERBS)}"
        )
    if verb not in VERBS:
        raise UsageError(
            f"unknown verb {verb!r}; the verbs are: {', '.join(VERBS)}. Usage: {USAGE}"
        )
    if VERBS[verb].usage and not {"--help", "-h"} & set(rest):
        return int(_target(verb)(rest))
    arguments = (
        Arguments(None, [], False, True)
        if VERBS[verb].usage
        else parse(rest, dict(VERBS[verb].short))
    )
    if arguments.help:
        print(_verb_help(verb))
        return 0
    from pipelines.plumbing.inherited import VERBS as INHERITING

    if arguments.config is None and verb not in INHERITING:
        raise UsageError(
            "--config FILE is missing; give your file or the name of a shipped configuration in "
            f"pipelines/configs/, such as demo. Usage: {USAGE}"
        )
    from pipelines.mistakes import check, check_input
    from pipelines.present import check_present

    config = _config(verb, arguments)
    stages = _kind(verb, config).stages
    check(config, stages)
    check_present(config, stages)
    if arguments.dry_run:
        said = plan(verb, config)
        notes = check_input(config, stages)
        print(said)
        print("".join(f"# note: {note}\n" for note in notes), end="")
        return 0
    _run(verb, config)
    return 0


def _config(verb: str, arguments: Arguments) -> Config:
    """The configuration of the file, or without a file the one stored with the verb's model.

    Inside a Ray job, ``ray.address`` becomes ``auto``. Why: otherwise the job would start a second
    Ray on one machine instead of using the cluster.
    """
    overrides = list(arguments.overrides)
    if _JOB in os.environ and "ray.address" not in dict(overrides):
        overrides.append(("ray.address", "auto"))
    if arguments.config is None:
        from pipelines.plumbing.inherited import inherited_config

        return inherited_config(verb, overrides)
    from recsys.config import load_config

    return load_config(config_file(arguments.config), overrides)


def _run(verb: str, config: Config) -> None:
    """Open the run folder and run the verb in it."""
    from pipelines.plumbing.folder import open_run

    with open_run(config, verb, locks=VERBS[verb].locks) as folder:
        if VERBS[verb].reads_model and verb != "run":  # `run` prepares the data first
            from pipelines.auto import with_model

            config = with_model(config, folder, chooses=verb in ("train", "tune"))
        _target(verb)(config, folder)


def _target(verb: str) -> Callable[..., Any]:
    module, name = VERBS[verb].target.split(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


def config_file(given: str) -> str:
    """The given path, or the shipped configuration of this name if no such file exists.

    >>> config_file("demo").endswith("pipelines/configs/demo.yaml"), config_file("of/my/own.yaml")
    (True, 'of/my/own.yaml')
    """
    from pathlib import Path

    shipped = Path(__file__).parent / "configs" / f"{given.removesuffix('.yaml')}.yaml"
    return (
        str(shipped)
        if "/" not in given and not Path(given).exists() and shipped.exists()
        else given
    )


def config_of(path: str | None, overrides: Sequence[tuple[str, str]]) -> Config:
    """The configuration of a verb that needs no file, with the options of the command line."""
    from recsys.config import load_config

    return load_config(None if path is None else config_file(path), overrides)


def plan(verb: str, config: Config) -> str:
    """The merged configuration as YAML, followed by comments that list the stages to run."""
    from recsys.config import dump_config, redact, redacted

    run = config.run.dir.rstrip("/")
    names = {
        "run": run,
        "dataset": config.dataset_dir.rstrip("/"),
        "source": _source_words(config.data.source.model_dump()),
        "name": config.registry.name,
        "alias": config.registry.alias,
        "tracking": redact(config.tracking.uri) or f"the SQLite store next to {run}",
        "answered": config.recommend.out or f"{run}/{config.recommend.answers}",
        "similar": config.similar.model or f"{run}/bundle/",
        "recommender": config.recommend.model or f"{run}/bundle/",
        "parent": config.update.model or f"models:/{config.registry.name}@champion",
        "candidate": (
            config.promote.model or f"models:/{config.registry.name}@{config.registry.alias}"
        ),
        "compared": " and ".join(config.compare.runs) or "two run folders",
        "comparison": (
            config.compare.out or f"{(config.compare.runs or ['RUN'])[0].rstrip('/')}/compare.json"
        ),
        "logs": ", ".join(config.compare.logs),
        "outcomes": ", ".join(config.compare.feedback),
        "estimated": config.compare.target or "compare.target is empty: no off-policy estimate",
        "pulled": config.pull.model or f"models:/{config.registry.name}@champion",
        "target": config.pull.dir.rstrip("/") or "DIR",
        "exported": config.export.model or f"{run}/bundle/",
        "export": config.export.out.rstrip("/") or "DIR",
        "refereed": (
            ", ".join([config.referee.protocol, *config.referee.lists, *config.referee.runs])
            if config.referee.protocol
            else _source_words(config.data.source.model_dump())
        ),
        "verdict": f"{(config.referee.out or config.referee.protocol or 'DIR').rstrip('/')}/",
        "feedback": ", ".join(config.update.feedback) or "update.feedback is empty",
        "served": (
            (config.serve.model or f"models:/{config.registry.name}@champion")
            + (f" and {config.serve.ab.model}" if config.serve.ab.model else "")
        ),
        "answers": (
            f"{config.serve.log}/answers-….jsonl"
            if config.serve.log
            else "nothing (serve.log is empty)"
        ),
        "shown": ", ".join(config.ui.runs),
        "space": ", ".join(config.tune.space) or "tune.space is empty",
    }
    chosen = _kind(verb, config)
    lines = [
        dump_config(redacted(config)).rstrip(),
        "",
        f"# `recsys {verb}` would run these stages in order:",
    ]
    for stage in chosen.stages:
        lines.append(f"#   {stage}")
        lines += [f"#     reads   {pattern.format(**names)}" for pattern in STAGES[stage].reads]
        lines += [f"#     writes  {pattern.format(**names)}" for pattern in STAGES[stage].writes]
    if chosen.preview:
        module, name = chosen.preview.split(":")
        said = getattr(importlib.import_module(module), name)(config)
        lines += ["#", *(f"# {line}".rstrip() for line in said.splitlines())]
    return redact("\n".join([*lines, "# Nothing was done: this is a dry run."]))


def _kind(verb: str, config: Config) -> Verb:
    """The verb, or the kind of it that the configuration chooses."""
    if verb == "update":
        return UPDATES[config.update.only]
    if verb == "compare" and config.compare.logs:
        return COMPARE_LOGS
    return SEARCHES[config.tune.search] if verb == "tune" else VERBS[verb]


def _source_words(source: dict[str, Any]) -> str:
    """Kind and paths of a source, as a dry run shows them."""
    places = [source.get(key) for key in ("folder", "events", "split_files", "test_pairs", "items")]
    shown = [place if isinstance(place, str) else str(place) for place in places if place]
    return f"{source['kind']} source " + ", ".join(shown) if shown else f"{source['kind']} source"


def _overview() -> str:
    verbs = "\n".join(f"  {name:<10} {verb.summary}" for name, verb in VERBS.items())
    later = f"in later releases: {', '.join(LATER)}\n" if LATER else ""
    return (
        f"usage: {USAGE}\n\nverbs:\n{verbs}\n\noptions:\n  --config FILE         a YAML file, or"
        " the name of a shipped one (pipelines/configs/): demo, lastfm, …\n  --section.key VALUE  "
        " set a key of the configuration, e.g. --train.lr 3e-4 --run.dir runs/first\n  --budget"
        " TIME         run: total time, e.g. 20m (run.budget); auto searches for settings in it\n "
        " --resume              continue an interrupted run of the same configuration\n  --ablate "
        "             evaluate without each granularity, with each alone, and with other fusions\n"
        "                        (evaluate.ablation full)\n  --events FILE …       update: files"
        " of new events; earlier events stay, --replace drops them\n  --force REASON       "
        " promote: promote even if the gate refuses (promote.force)\n  --rollback           "
        " promote: make the previous champion the champion again (promote.rollback)\n  --user ID …"
        "           forget: users to remove (forget.users)\n  --retrain             forget: train"
        " the models again without them (forget.retrain)\n  --also FOLDER …       forget: further"
        " logs, exports and copies to search (forget.also)\n  --item ID             similar: the"
        " item (similar.item)\n  --requests FILE       recommend: answer the requests in a file"
        " (recommend.requests)\n  --out FILE            recommend: where to write the answers"
        " (recommend.out)\n  --dry-run             print the merged configuration and the stages"
        " that would run, then stop\n  --help                after a verb: its options and keys,"
        " with type, default and meaning\n  --version             print the version\n\nhelp:\n "
        " recsys VERB --help    usage and keys of a verb\n  recsys help SECTION   keys of a"
        f" section, e.g. data.text or train\n  recsys help all       all keys\n\n{later}exit codes:"
        " 0 done, 1 refused by a gate or an unexpected error, 2 wrong input or configuration,\n   "
        "         129 terminal closed, 130 interrupted, 143 terminated"
    )


def _help_of(words: Sequence[str]) -> str:
    """``recsys help VERB``, ``recsys help SECTION`` or ``recsys help all``."""
    from pipelines.plumbing.reference import reference

    if len(words) != 1:
        raise UsageError(
            f"help: got {len(words)} words, expected one: a verb, a section such as data.text, or"
            " `all`"
        )
    if words[0] in VERBS:
        return _verb_help(words[0])
    return reference("" if words[0] == "all" else words[0])


def _verb_help(verb: str) -> str:
    from pipelines.plumbing.reference import keys_of

    usage, sections = VERBS[verb].usage or USAGE.replace("VERB", verb), VERBS[verb].sections
    keys = f"\n\n{keys_of(sections)}" if sections else ""
    return (
        f"usage: {usage}\n\n{VERBS[verb].summary}{keys}\n\nall keys of the configuration: recsys"
        " help all"
    )


def _refuse(message: str) -> int:
    print(f"recsys: {printable(message)}", file=sys.stderr)
    return 2


def _end(number: int, words: Sequence[str]) -> int:
    """Print which signal ended the command and how to continue; return the exit code."""
    verb = VERBS.get(words[0]) if words else None
    resumes = "train" in verb.stages if verb is not None else False
    again = "; run the same command again to continue" if words[:1] == ["tune"] else ""
    how = "; continue with --resume" if resumes else again
    with suppress(OSError):  # the terminal may be closed
        print(f"recsys: {_ENDINGS[number]}{how}", file=sys.stderr, flush=True)
    if not has_reader(sys.stdout):
        close_output()
    return 128 + number


if __name__ == "__main__":
    sys.exit(main())
