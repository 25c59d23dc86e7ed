"""The aliases ``champion`` and ``previous`` of a registered model, and the tags of its versions.

Why tags as well as aliases: an alias says which version is champion now. The tags of a version say
when and why it became champion and which version it replaced, so that a rollback finds its target
however often it is repeated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from recsys.config import redact
from recsys.errors import ArtifactError
from recsys.registry.mlflow_client import is_absence

CHAMPION: Final = "champion"
PREVIOUS: Final = "previous"  # the champion before this one, for a rollback
REPLACED: Final = "promotion.replaced"  # tag of a champion: the version that was champion before it
# tag of the version that a rollback makes champion, until it is recorded: the champion before it
_ROLLING_BACK: Final = "promotion.rolling_back"
_MAX_TAG: Final = 4900


class Aliases:
    """The aliases of one registered model."""

    def __init__(self, client: Any, name: str) -> None:
        self._client, self.name = client, name

    def version_of(self, alias: str) -> str:
        """The version that has an alias; empty where none has it.

        Raises
        ------
        MlflowException
            The registry does not answer.
        """
        from mlflow import MlflowException

        try:
            return str(self._client.get_model_version_by_alias(self.name, alias).version)
        except MlflowException as error:
            if not is_absence(error):
                raise
            return ""

    def promote(self, version: str, champion: str, tags: Mapping[str, Any]) -> None:
        """Make a version the champion, and the champion before it ``previous``.

        Parameters
        ----------
        version : str
            The new champion.
        champion : str
            The champion at the time of the decision; empty for none.
        tags : Mapping[str, Any]
            The decision, for the tags of the version.

        Raises
        ------
        ArtifactError
            The champion has changed since the decision.
        """
        now = self.version_of(CHAMPION)
        # MLflow has no conditional change of an alias, so this only narrows the gap
        if now != champion:
            raise ArtifactError(
                f"the champion of {self.name} was {_named(champion)} when this was decided and is"
                f" {_named(now)} now: another process has promoted a version in the meantime; run"
                " `recsys promote` again"
            )
        if champion:
            # first: after a crash in between, the champion is still the old one
            self._client.set_registered_model_alias(self.name, PREVIOUS, champion)
        # before the alias moves: a rollback of this champion needs it, and a command that is killed
        # afterwards leaves no champion without reasons
        self.tag(version, {REPLACED: champion or "none", **tags})
        self.end_rollback(version)
        self._client.set_registered_model_alias(self.name, CHAMPION, version)

    def roll_back(self) -> tuple[str, str]:
        """Make the version with the alias ``previous`` the champion again.

        The alias ``previous`` then moves to the version that this one had replaced, so two
        rollbacks go back two versions. A rollback that was interrupted before :meth:`end_rollback`
        is completed instead.

        Returns
        -------
        tuple[str, str]
            The champion before and after the rollback.

        Raises
        ------
        ArtifactError
            There is no champion, or no champion before it.
        """
        champion, previous = self.version_of(CHAMPION), self.version_of(PREVIOUS)
        interrupted = self.tags(champion).get(_ROLLING_BACK, "") if champion else ""
        if interrupted:
            champion, previous = interrupted, champion
        elif not champion or not previous or champion == previous:
            raise ArtifactError(
                f"{self.name} has"
                f" {'no champion' if not champion else f'no champion before {_named(champion)}'},"
                " so a rollback is not possible; promote a version with --promote.model"
                " models:/NAME/VERSION"
            )
        self.tag(previous, {_ROLLING_BACK: champion})
        self._client.set_registered_model_alias(self.name, CHAMPION, previous)
        before = self.tags(previous).get(REPLACED, "")
        # the tag stays when the version is deleted
        if before.isdigit() and before != champion and self._exists(before):
            self._client.set_registered_model_alias(self.name, PREVIOUS, before)
        elif self.version_of(PREVIOUS):
            self._client.delete_registered_model_alias(self.name, PREVIOUS)
        return champion, previous

    def end_rollback(self, version: str) -> None:
        """Note that the rollback to this version is recorded."""
        if _ROLLING_BACK in self.tags(version):
            self._client.delete_model_version_tag(self.name, version, _ROLLING_BACK)

    def tags(self, version: str) -> dict[str, str]:
        """The tags of a version."""
        return dict(self._client.get_model_version(self.name, version).tags)

    def run_id(self, version: str) -> str:
        """The MLflow run that a version comes from; empty where it is unknown."""
        return str(self._client.get_model_version(self.name, version).run_id or "")

    def tag(self, version: str, tags: Mapping[str, Any]) -> None:
        """Add tags to a version."""
        for key, value in tags.items():
            self._client.set_model_version_tag(
                self.name, version, key, redact(str(value))[:_MAX_TAG]
            )

    def _exists(self, version: str) -> bool:
        from mlflow import MlflowException

        try:
            self._client.get_model_version(self.name, version)
        except MlflowException as error:
            if not is_absence(error):
                raise
            return False
        return True


def _named(version: str) -> str:
    return f"version {version}" if version else "no version"
