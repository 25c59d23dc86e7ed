"""The user's data as an object: from data frames, files or a configuration to a prepared
dataset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.plumbing.own_tables import FRAMES
from pipelines.python.dotted_changes import Settings, with_settings
from pipelines.python.frames import check_given, check_roles, naming_arguments, table_of
from recsys.config import Config, dump_config, load_config
from recsys.errors import ConfigError, DataError, valid_instead
from recsys.inspect.look import Look, look
from recsys.inspect.terminal_summary import summary_of
from recsys.storage.temporary import temporary_folder

if TYPE_CHECKING:
    import pandas as pd

    from recsys.data.dataset import PreparedDataset

SplitName = Literal["train", "valid", "test"]


class Dataset:
    """Events of users, with optional attributes of users and items, friendships and knowledge.

    Make one with :meth:`from_files`, :meth:`from_pandas`, :meth:`from_polars`, :meth:`from_parquet`
    or :meth:`from_config`. The data is prepared when :func:`recsys.fit`, :meth:`events` or
    :meth:`evaluate` first needs it; the prepared dataset is kept in ``folder`` and used again.

    Parameters
    ----------
    config : Config
        Its section ``data`` says what to read; ``evaluate`` and ``train.metric`` say how lists are
        measured.
    folder : path, optional
        Folder of the prepared dataset. Default: a temporary folder, deleted when the process ends.

    Examples
    --------
    ```python
    dataset = recsys.Dataset.from_pandas(orders, items=products)
    print(dataset.words)  # how the data was understood, as `recsys init` prints it
    ```
    """

    def __init__(self, config: Config, folder: str | Path | None = None) -> None:
        self.folder = _folder(folder)
        self.words = ""  # how the files were understood, as text
        self.config = with_settings(
            config, {} if config.data.dir else {"data.dir": str(self.folder / "dataset")}
        )
        self._prepared: PreparedDataset | None = None

    @classmethod
    def from_files(
        cls, *files: str | Path, folder: str | Path | None = None, settings: Settings = None
    ) -> Dataset:
        """Make a dataset from files, folders or globs; their meaning is detected as by ``recsys
        init``.

        Parameters
        ----------
        *files : path
            CSV, JSON lines, Parquet, …; local or remote.
        folder : path, optional
            As for the class.
        settings : mapping, optional
            Changes of the configuration by dotted path, such as ``{"data.split.kind":
            "temporal"}``.

        Returns
        -------
        Dataset
            With what was understood in :attr:`words`.

        Raises
        ------
        SourceError
            No file can be read, or none holds events.
        ConfigError
            A setting is unknown or out of its range.
        """
        return cls._of_look(look([str(file) for file in files]), folder, settings)

    @classmethod
    def from_parquet(
        cls,
        events: str | Path,
        *,
        items: str | Path | None = None,
        users: str | Path | None = None,
        social: str | Path | None = None,
        knowledge: str | Path | None = None,
        folder: str | Path | None = None,
        settings: Settings = None,
    ) -> Dataset:
        """Make a dataset from Parquet files (or other formats) with known content.

        Parameters
        ----------
        events : path
            One row an event: user, item and, where known, time, type and value. Columns may have
            names of their own.
        items, users : path, optional
            One row an item (a user), with attributes.
        social : path, optional
            One row a friendship: two users.
        knowledge : path, optional
            One row per triple: head, relation, tail; or several rows per item, each with a group
            that it belongs to.
        folder, settings
            As in :meth:`from_files`.

        Returns
        -------
        Dataset
            With what was understood in :attr:`words`.

        Raises
        ------
        DataError
            A file has other content than stated; the message says what it seems to be.
        """
        given = {
            "events": events,
            "items": items,
            "users": users,
            "social": social,
            "knowledge": knowledge,
        }
        check_given(given, lambda path: isinstance(path, str | PathLike), "the path of a file")
        named = {role: str(path) for role, path in given.items() if path is not None}
        return cls._of_roles(named, "", folder, settings)

    @classmethod
    def from_pandas(
        cls,
        events: pd.DataFrame,
        *,
        items: pd.DataFrame | None = None,
        users: pd.DataFrame | None = None,
        social: pd.DataFrame | None = None,
        knowledge: pd.DataFrame | None = None,
        folder: str | Path | None = None,
        settings: Settings = None,
    ) -> Dataset:
        """Make a dataset from pandas data frames, which are written as Parquet files to ``folder``.

        Parameters
        ----------
        events : DataFrame
            One row an event: user, item and, where known, time, type and value. Columns may have
            names of their own.
        items, users : DataFrame, optional
            One row an item (a user), with attributes; lists and text are allowed.
        social : DataFrame, optional
            One row a friendship: two users.
        knowledge : DataFrame, optional
            One row a fact: head, relation, tail.
        folder, settings
            As in :meth:`from_files`.

        Returns
        -------
        Dataset
            With what was understood in :attr:`words`.

        Raises
        ------
        DataError
            A frame has no rows, a column that Arrow cannot hold, or other content than stated.
        """
        given = {
            "events": events,
            "items": items,
            "users": users,
            "social": social,
            "knowledge": knowledge,
        }
        import pandas as pd

        check_given(given, lambda table: isinstance(table, pd.DataFrame), "a pandas DataFrame")
        tables = {role: table_of(role, frame) for role, frame in given.items() if frame is not None}
        return cls._of_tables(tables, folder, settings)

    @classmethod
    def from_polars(
        cls,
        events: Any,
        *,
        items: Any = None,
        users: Any = None,
        social: Any = None,
        knowledge: Any = None,
        folder: str | Path | None = None,
        settings: Settings = None,
    ) -> Dataset:
        """Make a dataset from Polars data frames or Arrow tables; see :meth:`from_pandas`.

        Parameters
        ----------
        events, items, users, social, knowledge : polars.DataFrame or pyarrow.Table
            As in :meth:`from_pandas`; all but events are optional.
        folder, settings
            As in :meth:`from_files`.

        Returns
        -------
        Dataset
            With what was understood in :attr:`words`.

        Raises
        ------
        DataError
            A frame has no rows, or other content than stated.
        """
        given = {
            "events": events,
            "items": items,
            "users": users,
            "social": social,
            "knowledge": knowledge,
        }
        check_given(
            given,
            lambda table: isinstance(table, pa.Table) or hasattr(table, "to_arrow"),
            "a Polars DataFrame or an Arrow table",
        )
        tables = {
            role: frame if isinstance(frame, pa.Table) else frame.to_arrow()
            for role, frame in given.items()
            if frame is not None
        }
        return cls._of_tables(tables, folder, settings)

    @classmethod
    def from_config(
        cls,
        config: str | Path | Config,
        *,
        folder: str | Path | None = None,
        settings: Settings = None,
    ) -> Dataset:
        """Make a dataset from the section ``data`` of a configuration.

        Parameters
        ----------
        config : path or Config
            A YAML file, as for ``recsys run --config``. :func:`recsys.fit` uses its sections
            ``model`` and ``train``.
        folder, settings
            As in :meth:`from_files`.

        Returns
        -------
        Dataset
            The data is not read yet.

        Raises
        ------
        ConfigError
            There is no such file, or a key or value is wrong.
        """
        loaded = config if isinstance(config, Config) else load_config(config)
        return cls(with_settings(loaded, settings), folder)

    @classmethod
    def _of_look(cls, found: Look, folder: str | Path | None, settings: Settings) -> Dataset:
        dataset = cls(with_settings(found.config, settings), folder)
        dataset.words = summary_of(found.found)
        return dataset

    @classmethod
    def _of_tables(
        cls, tables: Mapping[str, pa.Table], folder: str | Path | None, settings: Settings
    ) -> Dataset:
        root = _folder(folder)
        files = {role: root / "tables" / f"{role}.parquet" for role in tables}
        (root / "tables").mkdir(parents=True, exist_ok=True)
        for role, table in tables.items():
            if not table.num_rows:
                raise DataError(f"{role} has no rows; expected at least one")
            pq.write_table(table, files[role])
        # marks the tables as ours, so that ``recsys forget`` may rewrite them
        (root / "tables" / FRAMES).touch()
        with naming_arguments(files):
            return cls._of_roles(
                {role: str(file) for role, file in files.items()}, "frames", root, settings
            )

    @classmethod
    def _of_roles(
        cls, named: Mapping[str, str], name: str, folder: str | Path | None, settings: Settings
    ) -> Dataset:
        """A dataset of files by role; an empty ``name`` becomes the name of their folder."""
        found = look(
            list(named.values()), name, stated={path: role for role, path in named.items()}
        )
        check_roles(
            named, {table.files: table.role for table in found.found.tables}, found.found.ignored
        )
        return cls._of_look(found, folder, settings)

    def __repr__(self) -> str:
        state = (
            ""
            if self._prepared is None
            else f", {self._prepared.num_users:,} users, {self._prepared.num_items:,} items"
        )
        return f"Dataset({self.config.data.source.kind}{state})"

    def to_yaml(self) -> str:
        """The configuration, as ``recsys run --config`` reads it.

        Returns
        -------
        str
            YAML.
        """
        return dump_config(self.config)

    @property
    def prepared(self) -> PreparedDataset:
        """The prepared dataset; it is made when it is first needed.

        Raises
        ------
        UserError
            The source cannot be read, or has nothing to train on.
        """
        if self._prepared is None:
            from pipelines.plumbing.run_folder import open_run
            from pipelines.prepare import prepare

            config = with_settings(self.config, {"run.dir": str(self.folder / "preparing")})
            with open_run(config, "prepare") as folder:
                self._prepared = prepare(config, folder)
        return self._prepared

    def events(self, split: SplitName) -> pd.DataFrame:
        """The events of one split, so that other libraries can train on the same events.

        Parameters
        ----------
        split : {"train", "valid", "test"}
            The split; the three splits together are all events.

        Returns
        -------
        DataFrame
            ``user_id, item_id, event_type, time`` (UTC; missing where unknown) and ``value``, in
            the order of users and, within a user, of events.

        Raises
        ------
        ConfigError
            There is no such split.
        UserError
            The source cannot be read, or has nothing to train on.
        """
        import pandas as pd

        from recsys.data.histories import COLD_VALID, Split

        if split not in get_args(SplitName):
            raise ConfigError(f"split: got {split!r}; {valid_instead(split, get_args(SplitName))}")
        dataset, wanted = self.prepared, Split[split.upper()]
        histories = dataset.histories()
        is_in_E = histories.splits_E == wanted
        if wanted == Split.VALID:
            is_in_E |= histories.splits_E == COLD_VALID
        rows_E = np.repeat(histories.users_U, histories.lengths_U)[is_in_E]
        times_E = histories.times_E[is_in_E]
        return pd.DataFrame(
            {
                "user_id": dataset.user_ids.take(pa.array(rows_E)).to_pandas(),
                "item_id": dataset.item_ids.take(pa.array(histories.items_E[is_in_E])).to_pandas(),
                "event_type": np.array(dataset.manifest.event_types)[histories.types_E[is_in_E]],
                # pandas reads the smallest int64 as a missing time
                "time": pd.to_datetime(
                    np.where(times_E == 0, np.iinfo(np.int64).min, times_E * 10**9), utc=True
                ),
                "value": histories.values_E[is_in_E],
            }
        )

    def evaluate(self, lists: pd.DataFrame, ks: Sequence[int] | None = None) -> pd.DataFrame:
        """Measure recommendations of any library on the test split, with the same rules and
        intervals as ours.

        Parameters
        ----------
        lists : DataFrame
            ``user_id``, ``item_id``, and ``rank`` (from 1) or ``score`` (largest first). Users
            without rows have empty lists, and their targets count as missed.
        ks : sequence of int, optional
            Cut-offs; default ``evaluate.ks``.

        Returns
        -------
        DataFrame
            One row per metric (``ndcg@10``, …): ``value`` (mean over the test users), ``low``,
            ``high`` (95 % interval).

        Raises
        ------
        DataError
            A column is missing, a user has an item twice, or a list contains items of the user's
            training events although ``evaluate.exclude_seen`` is true.
        """
        from pipelines.python.outside_lists import measured

        return measured(
            self.prepared, self.config.train, self.config.evaluate, self.config.seed, lists, ks
        )


def _folder(folder: str | Path | None) -> Path:
    if folder is None:
        return temporary_folder()
    path = Path(folder).expanduser().absolute()
    path.mkdir(parents=True, exist_ok=True)
    return path
