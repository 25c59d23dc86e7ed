"""The command line ``recsys VERB --config FILE [--section.key VALUE …] [--dry-run]``.

No heavy package is imported before a stage runs.

Exit codes: 0 done; 2 the input or the configuration is wrong (one message, no traceback); 130
interrupted (Ctrl-C); 143 terminated (SIGTERM); 129 the terminal was closed (SIGHUP); 1 a gate
refused (message and reasons, no traceback), or any other error.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pipelines.command_line.dry_run import plan
from pipelines.command_line.help import help_of, overview, verb_help
from pipelines.plumbing.arguments import USAGE, Arguments, UsageError, parse
from pipelines.plumbing.signals import ending_in_order
from pipelines.plumbing.terminal import (
    close_output,
    has_reader,
    printable,
    printable_warnings,
    show_any_text,
)
from pipelines.plumbing.user_message import user_message
from pipelines.stages import VERBS, chosen_verb

if TYPE_CHECKING:
    from recsys.config import Config

_ENDINGS: dict[int, str] = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "terminated",
    signal.SIGHUP: "ended because the terminal was closed",
}
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for the driver of a job


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


def _command(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help") or words == ["help"]:
        print(overview())
        return 0 if words else 2
    if words[0] == "help":
        print(help_of(words[1:]))
        return 0
    if words[0] == "--version":
        from recsys import __version__

        print(f"multigrain {__version__}")
        return 0
    verb, *rest = words
    if verb not in VERBS:
        from recsys.errors import valid_instead

        verbs = valid_instead(verb, VERBS, "the verbs are", ", ".join(VERBS))
        raise UsageError(f"unknown verb {verb!r}; {verbs}. Usage: {USAGE}")
    if VERBS[verb].usage and not {"--help", "-h"} & set(rest):
        return int(_target(verb)(rest))
    arguments = (
        Arguments(None, [], False, True)
        if VERBS[verb].usage
        else parse(rest, dict(VERBS[verb].short))
    )
    if arguments.help:
        print(verb_help(verb))
        return 0
    from pipelines.plumbing.inherited import VERBS as INHERITING

    if arguments.config is None and verb not in INHERITING:
        raise UsageError(
            "--config FILE is missing; give your file or the name of a shipped configuration in "
            f"pipelines/configs/, such as demo. Usage: {USAGE}"
        )
    from pipelines.command_line.configuration_checks import check, check_input
    from pipelines.command_line.file_checks import check_present

    config = _config(verb, arguments)
    stages = chosen_verb(verb, config.update, config.tune, config.compare).stages
    check(config, stages)
    check_present(config.data, config.recommend, config.update, stages)
    if arguments.dry_run:
        shown = plan(verb, config)
        notes = check_input(config, stages)
        print(shown)
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
    from pipelines.plumbing.progress import say_starting

    say_starting(verb, "libraries and Ray")
    from pipelines.plumbing.run_folder import open_run

    with open_run(config, verb, locks=VERBS[verb].locks) as folder:
        if VERBS[verb].reads_model and verb != "run":  # `run` prepares the data first
            from pipelines.steps.auto import with_model

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
