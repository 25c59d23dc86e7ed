"""``recsys referee``: an evaluation protocol as files for any library, and the scores of its lists.

``prepare`` reads the source of a configuration and writes the protocol to a folder; ``lists``
writes the lists of our baselines and runs for it; ``score`` checks and measures lists from any
library; ``page`` makes one page from several results. See docs/referee.md.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pipelines.cli import config_of
from pipelines.command_line.dry_run import plan
from pipelines.plumbing.arguments import UsageError, parse
from pipelines.plumbing.progress import table
from pipelines.plumbing.run_folder import write_atomically
from pipelines.plumbing.session import quiet
from pipelines.stages import VERBS
from recsys.config import Config, EvaluateConfig
from recsys.config.referee import RefereeConfig
from recsys.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from recsys.referee.protocol import Protocol

_SEVERAL: Final = {"--lists": "referee.lists", "--runs": "referee.runs"}
_SHORT: Final = {"protocol": "referee.protocol", "out": "referee.out"}


def command(words: Sequence[str]) -> int:
    """Run ``referee`` with the words after it.

    Raises
    ------
    UsageError
        There is no such action, or an option belongs to another one.
    ConfigError
        ``referee.out`` or ``referee.protocol`` is missing or remote.
    ArtifactError
        ``referee.out`` is a file instead of a folder, or a folder instead of a file.
    """
    action, rest = (words[0], list(words[1:])) if words else ("", [])
    if action not in _READS:
        raise UsageError(
            f"got {action!r}, expected {', '.join(_READS)}; usage: {VERBS['referee'].usage}"
        )
    rest, several, files = _taken_out(rest, action)
    arguments = parse(rest, _SHORT)
    reads = _READS[action]
    for name, _ in [*arguments.overrides, *several]:
        if name not in reads and not name.startswith(
            tuple(key for key in reads if key.endswith("."))
        ):
            known = ", ".join(f"--{key}" + ("…" if key.endswith(".") else "") for key in reads)
            raise UsageError(f"referee {action} does not read --{name}; it reads {known}")
    if action == "prepare" and arguments.config is None:
        raise UsageError(f"--config FILE is missing; usage: {VERBS['referee'].usage}")
    config = config_of(arguments.config, [*arguments.overrides, *several])
    if not config.referee.out and action != "score":
        raise ConfigError(
            f"referee.out is empty; give a folder or file: --out; usage: {VERBS['referee'].usage}"
        )
    if not config.referee.protocol and action in ("lists", "score"):
        raise ConfigError(
            f"referee.protocol is empty; give --protocol DIR; usage: {VERBS['referee'].usage}"
        )
    if "://" in f"{config.referee.out}{config.referee.protocol}":
        raise ConfigError(
            "referee.protocol and referee.out must be local folders; copy them to remote storage"
            " afterwards"
        )
    _check_out(action, config.referee.out)
    if arguments.dry_run:
        print(plan("referee", config))
        return 0
    quiet()
    whole = f"recsys referee {shlex.join(words)}"
    if action == "prepare":
        prepare(config, whole)
    elif action == "lists":
        lists(config.evaluate, config.referee, whole)
    elif action == "score":
        score(config.referee, config.seed, whole)
    else:
        write_page(config.referee.out, files)
    return 0


def _check_out(action: str, out: str) -> None:
    target = Path(out)
    folder = target.parent if action == "page" else target
    file = next((one for one in (folder, *folder.parents) if one.is_file()), None)
    if file is not None:
        raise ArtifactError(f"{file} is a file, expected a folder; choose another name: --out")
    if action == "page" and target.is_dir():
        raise ArtifactError(f"{target} is a folder, expected the file of the page: --out")


def _taken_out(words: list[str], action: str) -> tuple[list[str], list[tuple[str, str]], list[str]]:
    """Split off the options that take several values.

    Returns
    -------
    tuple
        The other words, those options as settings, and the files of a page.

    Raises
    ------
    UsageError
        One of those options has no value.
    """
    rest, found, files = list[str](), dict[str, list[str]](), list[str]()
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        name, equals, value = word.partition("=")
        if name in _SEVERAL:
            values = [value] if equals else []
            while waiting and not waiting[0].startswith("-"):
                values.append(waiting.pop(0))
            if not values:
                raise UsageError(f"{name} needs a value: {name} NAME=FILE …")
            found.setdefault(_SEVERAL[name], []).extend(values)
        elif word.startswith("-"):
            rest.append(word)
            if not equals and waiting and not waiting[0].startswith("-"):
                rest.append(waiting.pop(0))
        elif action == "page":
            files.append(word)
        else:
            rest.append(word)
    return rest, [(key, json.dumps(values)) for key, values in found.items()], files


# ------------------------------------------------------------------------------------------ prepare


def prepare(config: Config, command: str) -> Protocol:
    """Write the protocol for the sections ``data``, ``evaluate`` and ``referee``.

    The dataset is prepared if it is not up to date.

    Raises
    ------
    ArtifactError
        ``--out`` has other files than those of a protocol.
    """
    from pipelines.plumbing.run_folder import open_run
    from pipelines.prepare import prepare as prepare_dataset
    from recsys.referee.exported_protocol import protocol_of
    from recsys.referee.protocol import others_in, write_protocol

    target = Path(config.referee.out)
    # the folder is replaced below, so it must not hold anything else
    if others := others_in(target):
        shown = f"{', '.join(others[:5])}{' …' if len(others) > 5 else ''}"
        raise ArtifactError(
            f"{target} has files that prepare did not write: {shown}; move them, or choose another"
            " folder: --out"
        )
    with open_run(config, "referee") as folder:
        dataset = prepare_dataset(config, folder)
        protocol = protocol_of(dataset, config)
        protocol.about["command"] = command
        target.parent.mkdir(parents=True, exist_ok=True)
        # next to the target, because a rename works only within one file system
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as aside:
            write_protocol(protocol, Path(aside) / "new", config.referee.format)
            if target.exists():
                shutil.rmtree(target)
            (Path(aside) / "new").rename(target)
        num_lists = sum(len(window.ask) for window in protocol.windows)
        folder.progress(f"protocol {protocol.hash[:12]} in {target}: it needs {num_lists:,} lists")
    return protocol


# -------------------------------------------------------------------------------------------- lists


def lists(evaluate: EvaluateConfig, referee: RefereeConfig, command: str) -> list[Path]:
    """Write the lists of ``evaluate.baselines`` and ``referee.runs`` for the protocol.

    Parameters
    ----------
    evaluate : EvaluateConfig
        Names the baselines.
    referee : RefereeConfig
        Names the protocol, the runs and the folder of the lists.
    command : str
        The command that asks for the lists; the files name it.

    Raises
    ------
    ConfigError
        A run has another dataset, split or mask, or the protocol rules out every baseline.
    """
    from recsys.referee.own_lists import ruled_out, write_baselines
    from recsys.referee.protocol import read_protocol

    protocol, out = read_protocol(Path(referee.protocol)), Path(referee.out)
    named = [_named(word) for word in referee.runs]
    wanted = "baselines" in evaluate.model_fields_set or not named
    baselines: Sequence[str] = evaluate.baselines if wanted else ()
    if evaluate.exclude_seen != protocol.masks_seen and "exclude_seen" in evaluate.model_fields_set:
        print(f"evaluate.exclude_seen is ignored: the protocol has mask {protocol.rules['mask']}")
    left_out = ruled_out(protocol, baselines, evaluate)
    for name, why in left_out.items():
        print(f"{name} is left out: {why}")
    if left_out and len(left_out) == len(baselines):
        raise ConfigError(
            f"evaluate.baselines: no baseline is left of {', '.join(baselines)}; name others, such"
            " as popularity"
        )
    baselines = [name for name in baselines if name not in left_out]
    if baselines and not protocol.has_validation:
        print("the protocol has no validation query, so baselines keep their default settings")
    written = (
        write_baselines(protocol, baselines, evaluate, out, referee.format, command)
        if baselines
        else []
    )
    for name, run in named:
        written.append(_of_run(protocol, name, run, out, referee.format, command))
    for path in written:
        print(f"wrote {path}")
    return written


def _named(word: str) -> tuple[str, str]:
    name, equals, path = word.partition("=")
    if not (equals and name and path):
        raise ConfigError(f"referee.runs: got {word!r}, expected NAME=FOLDER of a finished run")
    return name, path


def _of_run(protocol: Protocol, name: str, run: str, out: Path, form: str, command: str) -> Path:
    """Write the test lists of a run's model, computed on the dataset that it was trained on."""
    from pipelines.comparison.finished_runs import opened_run
    from pipelines.plumbing.opened_dataset import open_dataset
    from pipelines.plumbing.opened_model import open_trained
    from recsys.evaluation.ranking import rank
    from recsys.referee.own_lists import check_full, evaluated_by, stamped, table_of
    from recsys.referee.tables import write_table

    check_full(protocol)
    with ExitStack() as stack:
        side = stack.enter_context(opened_run(run))
        dataset = open_dataset(side.config.data, side.config.dataset_dir, side.config.seed)
        made_of = str(protocol.about.get("dataset", ""))
        if len(protocol.windows) > 1 or dataset.manifest.content_hash != made_of:
            raise ConfigError(
                f"{run} was trained on dataset {dataset.manifest.content_hash[:12]} with one test"
                f" window, but the protocol has dataset {made_of[:12]} and"
                f" {len(protocol.windows)} window(s); prepare a protocol with the configuration of"
                " the run"
            )
        # the weights of the model's parts were chosen for lists with this mask
        if side.config.evaluate.exclude_seen != protocol.masks_seen:
            raise ConfigError(
                f"{run} has evaluate.exclude_seen {str(not protocol.masks_seen).lower()}, but the"
                f" protocol has mask {protocol.rules['mask']}; prepare a protocol with the"
                " configuration of the run"
            )
        model = open_trained(side.config.model, side.folder, dataset).frozen
        queries = evaluated_by(protocol, dataset)
        ranking = rank(
            model, queries, max(protocol.ks), protocol.masks_seen, side.config.evaluate.chunk_users
        )
        users = dataset.user_ids.take(ranking.queries.histories.users_U)
        path = out / f"{name}.{form}"
        through = side.metrics["data"]["fitted_through"]
        command = f"{command} (fitted on the events through {through})"
        write_table(
            stamped(table_of(ranking, users, dataset.item_ids), protocol, command, form), path
        )
    return path


# -------------------------------------------------------------------------------------------- score


def score(referee: RefereeConfig, seed: int, command: str) -> dict[str, Any]:
    """Check and measure the lists, print the leaderboard, and write it to ``--out`` or the
    protocol's folder.

    Parameters
    ----------
    referee : RefereeConfig
        Names the protocol and the lists.
    seed : int
        Seed of the bootstrap.
    command : str
        The command that asks for the leaderboard; the record names it.

    Raises
    ------
    ConfigError
        ``referee.lists`` is empty.
    """
    from recsys.evaluation.bootstrap import LEVEL
    from recsys.referee.entries import methods_of
    from recsys.referee.judge import judge
    from recsys.referee.leaderboard import board, findings, head, html, markdown
    from recsys.referee.protocol import read_protocol

    if not referee.lists:
        raise ConfigError(
            f"referee.lists is empty; give --lists NAME=FILE …; usage: {VERBS['referee'].usage}"
        )
    methods = methods_of(referee.lists)
    protocol = read_protocol(Path(referee.protocol))
    verdict = judge(protocol, methods, referee.bootstrap, seed)
    record: dict[str, Any] = {
        "protocol": protocol.described(),
        "level": LEVEL,
        "resamples": referee.bootstrap,
        "seed": seed,
        "methods": verdict.methods,
        "pairs": verdict.pairs,
        "notes": verdict.notes,
        "command": command,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    print(f"{head(record)}\n{table(board(record))}")
    for line in [*findings(record), *(f"note: {note}" for note in record["notes"])]:
        print(line)
    out = Path(referee.out or referee.protocol)
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    for name, content in (
        ("referee.json", text),
        ("referee.md", markdown(record)),
        ("referee.html", html(record)),
    ):
        write_atomically(out / name, content)
    print(f"wrote {out}/referee.json, referee.md, referee.html")
    return record


def write_page(out: str, files: Sequence[str]) -> None:
    """Write one page from several results of ``score``.

    Raises
    ------
    ArtifactError
        A file is not such a result.
    UsageError
        No file is given.
    """
    from recsys.referee.leaderboard import page

    if not files:
        raise UsageError(f"no referee.json is given; usage: {VERBS['referee'].usage}")
    records = []
    for file in files:
        try:
            records.append(json.loads(Path(file).read_text(encoding="utf-8")))
            page(records[-1:])
        except (OSError, ValueError, RecursionError) as error:
            raise ArtifactError(
                f"{file} cannot be read ({error}); give referee.json of `recsys referee score`"
            ) from None
        except (LookupError, TypeError, AttributeError):  # a part of the page is missing
            raise ArtifactError(
                f"{file} is not a result of `recsys referee score`; give its referee.json"
            ) from None
    target = Path(out)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, page(records))
    print(f"wrote {target}: {len(records)} protocols")


_OF_DATA: Final = ("seed", "run.", "data.", "ray.", "train.metric", "train.refit")
_READS: Final[dict[str, tuple[str, ...]]] = {
    "prepare": (
        *(f"referee.{key}" for key in ("out", "mask", "sample", "sampler", "windows", "format")),
        *("evaluate.ks", "evaluate.max_users", "evaluate.exclude_seen"),
        *_OF_DATA,
    ),
    "lists": ("referee.protocol", "referee.out", "referee.runs", "referee.format", "evaluate."),
    "score": ("referee.protocol", "referee.lists", "referee.out", "referee.bootstrap", "seed"),
    "page": ("referee.out",),
}


if __name__ == "__main__":
    from pipelines.cli import main

    sys.exit(main(["referee", *sys.argv[1:]]))
