"""SIGKILL for a command before each of its writes: the same command again ends with the result of
an uninterrupted one.

Writes are files and folders that the command opens, renames or removes, and the commits of its
SQLite store. `RECSYS_KILL_WRITES` names the writes of a shorter test, such as `17:22` or `::5`.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Final

import pytest

from tests.faults import Command, world
from tests.kills import FORCED, SHORT, Forked, differences, import_all, left

pytestmark = pytest.mark.timeout(3000)
# what each command is called again with after a kill, and its words; in this order
STEPS: Final[dict[str, tuple[str, ...]]] = {
    "evaluate": ("--resume", "evaluate", "--config", "{config}"),
    "register": ("--resume", "register", "--config", "{config}"),
    "promote": ("--resume", "promote", "--config", "{config}", *FORCED),
    "register a second version": ("", "register", "--config", "{config}"),
    "promote it": (
        "--resume",
        *("promote", "--config", "{config}", "--promote.model", "models:/tiny/2", *FORCED),
    ),
    "roll back": ("", "promote", "--config", "{config}", "--rollback"),
    "pull": ("", "pull", "models:/tiny@champion", "{folder}/pulled", "--tracking.uri", "{store}"),
    "pull again": (
        "",
        *("pull", "models:/tiny/2", "{folder}/pulled", "--tracking.uri", "{store}"),
    ),
    "export": (
        "",
        *("export", "{folder}/run", "--to", "parquet", "--out", "{folder}/exported"),
        *("--export.users", "true", "--tracking.uri", "{store}"),
    ),
    "forget": ("", "forget", "--config", "{config}", "--user", "{user}"),
}
NOT_KILLED: Final = "register a second version"  # it is as the first


class World:
    """A trained model, and a copy of everything before each step, in a place that stays."""

    def __init__(self, root: Path) -> None:
        self.root, self.folder = root, root / "here"
        self.folder.mkdir()
        self._done: list[str] = []
        config = world(self.folder, train=SHORT)
        for verb in ("prepare", "train"):
            with Command(verb, config) as command:
                command.ends()
        self.save()

    def words(self, step: str) -> list[str]:
        """The command of a step."""
        place = self.folder
        return [
            word.format(
                config=place / "tiny.yaml",
                folder=place,
                store=f"sqlite:///{place}/mlflow.db",
                user="u000007",
            )
            for word in STEPS[step][1:]
        ]

    def until(self, step: str) -> None:
        """Do the steps before this one, if not done yet, and restore the files after them."""
        for before in STEPS:
            if before == step:
                break
            if before not in self._done:
                self.restore()
                Forked(self.words(before), self.folder).succeeds()
                self._done.append(before)
                self.save()
        self.restore()

    def save(self) -> None:
        """Save the files as those to begin with."""
        shutil.rmtree(self.root / "before", ignore_errors=True)
        shutil.copytree(self.folder, self.root / "before")

    def restore(self) -> None:
        """Restore the saved files."""
        shutil.rmtree(self.folder)
        shutil.copytree(self.root / "before", self.folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    import_all()
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("writes")
        patch.setenv("XDG_CONFIG_HOME", str(root / "config"))  # the key that signs proofs
        # the list of forgotten users has a random salt, on which the content hash depends
        salt = SimpleNamespace(token_hex=lambda size: "0" * 2 * size)
        patch.setattr("recsys.data.forgotten.secrets", salt)
        yield World(root)


@pytest.mark.slow
@pytest.mark.parametrize("step", [step for step in STEPS if step != NOT_KILLED])
def test_command_equals_reference_after_kill_before_each_write(made: World, step: str) -> None:
    """The same command again; `register` and `promote` with `--resume`."""
    made.until(step)
    words, folder, problems = made.words(step), made.folder, []
    again = [*words, STEPS[step][0]] if STEPS[step][0] else words
    number = Forked(words, folder).succeeds()
    reference = left(folder)
    parts = [int(part or 0) for part in os.environ.get("RECSYS_KILL_WRITES", "::1").split(":")]
    chosen = range(1, number + 1)[parts[0] : parts[1] or None : (parts + [1])[2] or 1]
    for at in chosen:
        made.restore()
        killed = Forked(words, folder, at)
        code = killed.wait(300)
        killed.end()
        try:
            assert code == -signal.SIGKILL, f"exit code {code}: {killed.output}"
            Forked(again, folder).succeeds()
            found = differences(reference, left(folder))
        except (AssertionError, OSError) as error:
            found = str(error)
        if found:
            problems.append(f"before write {at}: {found}")
            print(problems[-1])
    print(f"KILLS {step}: before {len(chosen)} of {number} writes; {len(problems)} differences")
    assert not problems, "\n".join(problems)
