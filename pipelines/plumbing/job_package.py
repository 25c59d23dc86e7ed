"""The job package: this project and one configuration, in a small folder that Ray copies to every
node.

Why a copy of the packages and not of the working folder: it is the same for a checkout and an
installed wheel, from any folder, and no run, data set or virtual environment is sent by accident.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from pipelines.plumbing.job_package_files import Left, Sent, package_files
from recsys.config.path_keys import absolute, path_keys, with_absolute_paths
from recsys.config.redaction import redacted_tree
from recsys.errors import ConfigError

CONFIG: Final = "job.yaml"
PACKAGES: Final = ("recsys", "pipelines", "tune")
_VARIABLE: Final = re.compile(r"\$\{?[A-Z_][A-Z0-9_]*\}?")
MAX_BYTES: Final = 100 << 20  # Ray's own limit for a working directory


@dataclass(frozen=True)
class JobPackage:
    """The files that are sent besides the configuration, and the files that are left out."""

    sent: list[Sent]
    left: list[Left]

    @property
    def summary(self) -> str:
        """One line: how much is sent, and how much is left out."""
        size = sum(file.size for file in self.sent)
        more = f"; left out: {len(self.left)} (`--dry-run` lists them)" if self.left else ""
        return (
            f"sends {len(self.sent)} files of {', '.join(PACKAGES)} ({size / (1 << 20):.1f} MiB)"
            f" and {CONFIG}{more}"
        )

    def lines(self) -> list[str]:
        """Every file with its size, then the files left out with the reason."""
        return [
            f"{len(self.sent)} files, {sum(file.size for file in self.sent):,} bytes:",
            *(f"  {file.size:>9,}  {file.target}" for file in self.sent),
            f"left out: {len(self.left) or 'nothing'}",
            *(f"  {one.target}: {one.why}" for one in self.left),
        ]


def contents(homes: Sequence[Path] | None = None) -> JobPackage:
    """The files of the packages, or of other folders, that a job needs."""
    sent: list[Sent] = []
    left: list[Left] = []
    for home in _homes() if homes is None else homes:
        more_sent, more_left = package_files(home)
        sent, left = sent + more_sent, left + more_left
    return JobPackage(sent, left)


def _homes() -> list[Path]:
    """The folders of the packages."""
    found = []
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.submodule_search_locations, package
        found.append(Path(spec.submodule_search_locations[0]))
    return found


def pack(tree: dict[str, Any], folder: Path) -> JobPackage:
    """Write the job package: the packages, and the configuration from :func:`job_config`.

    Raises
    ------
    ConfigError
        The configuration holds a password, or the packages are too large to be only code.
    """
    job_package = contents()
    for file in job_package.sent:
        target = folder / file.target
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file.source, target)
    (folder / CONFIG).write_text(job_config(tree), encoding="utf-8")
    size = sum(file.size for file in job_package.sent)
    if size >= MAX_BYTES:
        raise ConfigError(
            f"the packages {', '.join(PACKAGES)} take {size >> 20} MiB, more than the"
            f" {MAX_BYTES >> 20} MiB that Ray copies to its nodes; move files that are not code out"
            " of them"
        )
    return job_package


def job_config(tree: dict[str, Any]) -> str:
    """The configuration for the job: absolute paths; the cluster expands ``$VARIABLES``.

    Raises
    ------
    ConfigError
        A URI holds user and password. Everyone on the cluster could read them.
    """
    # the default is relative, and would be inside the job's copy of the project
    sent = {**tree, "run": {"dir": "runs/latest", **(tree.get("run") or {})}}
    sent.pop("submit", None)
    sent = with_absolute_paths(sent)
    uri = (sent.get("tracking") or {}).get("uri")
    if isinstance(uri, str) and uri.startswith("sqlite:///"):
        sent["tracking"] = {
            **sent["tracking"],
            "uri": f"sqlite:///{absolute(uri.removeprefix('sqlite:///'))}",
        }
    for dotted, text in _texts(sent):
        # the path of a key is no secret
        name = "" if dotted in path_keys() else dotted.rpartition(".")[2]
        public = redacted_tree(text, name)
        # a variable is expanded on the cluster, so the secret itself is not sent
        if public != text and not _VARIABLE.fullmatch(text):
            raise ConfigError(
                f"{dotted}: {public} has a password or another secret, which must not be sent to a"
                " cluster; put the value into the environment of its nodes, for example as"
                " TRACKING_URI, and write $TRACKING_URI here"
            )
    return yaml.safe_dump(sent, sort_keys=False, allow_unicode=True)


def _texts(node: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a tree with its dotted path."""
    if isinstance(node, str):
        yield where, node
    elif isinstance(node, dict):
        for key, child in node.items():
            yield from _texts(child, f"{where}.{key}".lstrip("."))
    elif isinstance(node, list):
        for child in node:
            yield from _texts(child, where)
