"""``recsys submit``: run a verb as a job on a Ray cluster and follow it; show, stop and list jobs.

The job is ``python -m pipelines.cli VERB --config job.yaml --ray.address auto`` in a copy of this
project (see :mod:`pipelines.plumbing.job_package`). This command prints the log of the job and ends
with its exit code.
"""

from __future__ import annotations

import secrets
import shlex
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pipelines.cli import config_file
from pipelines.command_line.configuration_checks import check
from pipelines.command_line.dry_run import plan
from pipelines.plumbing.arguments import UsageError, parse
from pipelines.plumbing.job_package import CONFIG, contents, job_config, pack
from pipelines.plumbing.jobs import (
    ENDED,
    LostError,
    address_of,
    connect,
    details,
    follow,
    nodes_summary,
)
from pipelines.plumbing.nodes import dashboard_nodes
from pipelines.plumbing.preflight import check_cluster, preflight
from pipelines.plumbing.progress import table
from pipelines.stages import VERBS, chosen_verb
from recsys.config import Config, SubmitConfig, build_config, load_config, parse_value, read_tree
from recsys.errors import ConfigError
from recsys.storage.temporary import temporary

ABOUT_JOBS: Final = ("status", "logs", "stop", "list")
_STOPPING_S: Final = 30.0


def command(words: Sequence[str]) -> int:
    """Run ``submit`` with the words after it; return the exit code.

    Raises
    ------
    UsageError
        The first word is neither a verb nor an action on jobs, or ``--config`` is missing.
    """
    verbs = [name for name, verb in VERBS.items() if not verb.usage]
    first, *rest = words or [""]
    if first in ABOUT_JOBS:
        return _about_jobs(first, rest)
    if first not in verbs:
        raise UsageError(
            f"submit: got {first!r}, expected a verb or an action on jobs; verbs:"
            f" {', '.join(verbs)}; or: {', '.join(ABOUT_JOBS)}. Usage: {VERBS['submit'].usage}"
        )
    arguments = parse(rest, dict(VERBS[first].short))
    if arguments.config is None:
        raise UsageError(
            f"submit {first}: --config FILE is missing. Usage: {VERBS['submit'].usage}"
        )
    tree = read_tree(config_file(arguments.config), arguments.overrides)
    # mistakes stop here, before anything is sent; variables may be set on the cluster alone
    config = build_config(
        tree,
        arguments.config,
        options=[name for name, _ in arguments.overrides],
        unset_stay=True,
    )
    check(config, chosen_verb(first, config.update, config.tune, config.compare).stages)
    if arguments.dry_run:
        print(_dry_run(first, config, tree))
        return 0
    return submit(first, config, tree)


def submit(verb: str, config: Config, tree: dict[str, Any]) -> int:
    """Submit a verb with the configuration ``tree``, and follow it unless ``submit.follow`` is
    false.

    Parameters
    ----------
    verb : str
        The verb to run on the cluster.
    config : Config
        The checked configuration; its section ``submit`` names the cluster.
    tree : dict[str, Any]
        The configuration as plain values, sent with the job.

    Returns
    -------
    int
        The exit code as in :func:`watch`; 0 without following.

    Raises
    ------
    ConfigError
        No cluster answers at the address, the job id is in use, or the configuration holds a
        secret.
    RuntimeError
        The cluster refuses the job for another reason.
    """
    job_config(tree)  # a secret is refused before the cluster is contacted
    client = connect(config.submit.address)
    # `prepare` alone needs nothing of what a training does
    stages = chosen_verb(verb, config.update, config.tune, config.compare).stages
    if {"train", "sweep"} & set(stages):
        nodes = dashboard_nodes(nodes_summary(client))
        check_cluster(config.train, config.ray, config.submit, nodes)
        preflight(config, print, nodes, None)
    # random at the end, because two people may submit in the same second
    job = config.submit.id or f"{verb}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    with temporary() as folder:
        print(pack(tree, Path(folder)).summary, flush=True)
        try:
            client.submit_job(
                entrypoint=entrypoint(verb),
                submission_id=job,
                runtime_env={"working_dir": folder},
                metadata={"verb": verb, "run": job_folder(tree)},
                entrypoint_num_cpus=config.submit.cpus or None,
                entrypoint_resources=config.submit.resources or None,
            )
        except RuntimeError as error:
            # Ray has no type of its own for this error
            if "already exists" not in str(error) and "already been" not in str(error):
                raise
            raise ConfigError(
                f"submit.id: the cluster already has a job {job!r}; give another id, or none"
            ) from None
    print(
        f"job {job} on {address_of(config.submit.address)}, run folder {job_folder(tree)}",
        flush=True,
    )
    return watch(client, job, config.submit) if config.submit.follow else 0


def entrypoint(verb: str) -> str:
    """The job's command. All settings are in the configuration file, so process lists do not show
    them.
    """
    return shlex.join(
        ["python", "-m", "pipelines.cli", verb, "--config", CONFIG, "--ray.address", "auto"]
    )


def job_folder(tree: dict[str, Any]) -> str:
    """The run folder as the job sees it."""
    import yaml

    return str(yaml.safe_load(job_config(tree))["run"]["dir"])


def watch(client: Any, job: str, config: SubmitConfig) -> int:
    """Follow a job to its end.

    Parameters
    ----------
    client : Any
        Ray's ``JobSubmissionClient``.
    job : str
        Id of the job.
    config : SubmitConfig
        The section ``submit``; ``on_interrupt`` decides whether Ctrl-C stops the job.

    Returns
    -------
    int
        The exit code of the job, 130 after Ctrl-C, 1 if the connection to the cluster is lost.
    """

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    try:
        found = follow(client, job, write)
    except KeyboardInterrupt:
        if config.on_interrupt == "stop":
            print(f"\ninterrupted: job {job} is {_stop(client, job).lower()}", file=sys.stderr)
        else:
            print(
                f"\ndetached; job {job} keeps running: recsys submit logs|stop {job}",
                file=sys.stderr,
            )
        return 130
    except LostError as error:
        print(
            f"recsys: {error}; job {job} may still be running: recsys submit logs {job}",
            file=sys.stderr,
        )
        return 1
    return exit_code(found)


def exit_code(found: Any) -> int:
    """The exit code of a finished job; 1 if it failed before it had one."""
    if found.status.value == "SUCCEEDED":
        return 0
    print(
        f"recsys: job {found.submission_id} {found.status.value.lower()}: {_message(found)}",
        file=sys.stderr,
    )
    return (
        found.driver_exit_code if found.driver_exit_code and 0 < found.driver_exit_code < 256 else 1
    )


def _about_jobs(what: str, words: Sequence[str]) -> int:
    job, rest = "", list(words)
    if what != "list":
        if not rest or rest[0].startswith("--"):
            raise UsageError(
                f"submit {what}: the id of the job is missing; see `recsys submit list`. Usage:"
                f" {VERBS['submit'].usage}"
            )
        job = rest.pop(0)
    config = _section(rest)
    client = connect(config.address)
    if what == "list":
        print(_listed(client.list_jobs()))
        return 0
    found = details(client, job)
    if what == "logs":
        return watch(client, job, config)
    if what == "stop":
        print(
            f"job {job}:"
            f" {found.status.value if found.status.value in ENDED else _stop(client, job)}"
        )
        return 0
    print(_described(found))
    return 0


def _section(words: Sequence[str]) -> SubmitConfig:
    """The section ``submit`` from a configuration file or from options."""
    arguments = parse(words)
    if arguments.config is not None:
        return load_config(config_file(arguments.config), arguments.overrides).submit
    refused = [name for name, _ in arguments.overrides if not name.startswith("submit.")]
    if refused:
        raise UsageError(
            f"--{refused[0]}: actions on jobs only read --config and --submit.… options"
        )
    values = {
        name.removeprefix("submit."): parse_value(name, text) for name, text in arguments.overrides
    }
    return build_config({"submit": values}, "command line").submit


def _stop(client: Any, job: str) -> str:
    """Stop a job, wait until it has ended, and return its state."""
    client.stop_job(job)
    state, last = "", time.monotonic() + _STOPPING_S
    while state not in ENDED and time.monotonic() < last:
        time.sleep(0.5)
        state = client.get_job_info(job).status.value
    return state if state in ENDED else "STOPPING"


def _listed(jobs: list[Any]) -> str:
    ours = sorted(
        (job for job in jobs if job.submission_id), key=lambda job: -(job.start_time or 0)
    )
    if not ours:
        return "no jobs"
    rows = [["job", "status", "started", "run"]]
    return table(
        rows
        + [
            [
                j.submission_id,
                j.status.value,
                _when(j.start_time),
                (j.metadata or {}).get("run", ""),
            ]
            for j in ours
        ]
    )


def _described(found: Any) -> str:
    rows = {
        "job": found.submission_id,
        "status": found.status.value,
        "started": _when(found.start_time),
        "ended": _when(found.end_time),
        "exit code": "" if found.driver_exit_code is None else str(found.driver_exit_code),
        **(found.metadata or {}),
        "command": found.entrypoint,
        "message": _message(found),
    }
    return "\n".join(f"{name:<10}{value}" for name, value in rows.items() if value)


def _when(milliseconds: int | None) -> str:
    return (
        datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")
        if milliseconds
        else ""
    )


def _message(found: Any) -> str:
    lines = str(found.message or "").strip().splitlines()
    return lines[0] if lines else ""


def _dry_run(verb: str, config: Config, tree: dict[str, Any]) -> str:
    lines = [
        plan(verb, config),
        "#",
        f"# `recsys submit` would send this job to {address_of(config.submit.address)}:",
    ]
    lines += [f"#   command  {entrypoint(verb)}", f"#   {CONFIG}"]
    lines += [f"#     {line}" for line in job_config(tree).splitlines()]
    return "\n".join([*lines, *(f"#   {line}" for line in contents().lines())])
