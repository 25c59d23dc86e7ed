"""Blocks of tables for Ray tasks, without progress bars, logs and wrapped exceptions.

Why: tasks over blocks can return several objects and small reports, which ``map_batches`` cannot.
They take milliseconds, whereas a shuffle of Ray Data takes seconds for data of any size. Workers
that run only such tasks do not import Ray Data, which takes a second in each of them.

Inside :func:`in_this_process` the same tasks run in threads of this process. For small data this
takes less time than the start of Ray.
"""

from __future__ import annotations

import logging
import pickle
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from recsys.errors import UserError
from recsys.preparation.local_tasks import LocalTasks, held, value_of

if TYPE_CHECKING:
    import ray.data

    from recsys.sources.base import Piece

_FEW_PIECES: Final = 16
_RETRY_ADVICE: Final = "\nFailed to apply UDF transform"


@dataclass(frozen=True)
class _Here:
    """Tasks run in this process."""

    tasks: LocalTasks
    start_ray: Callable[[], object]


_HERE: ContextVar[_Here | None] = ContextVar("here", default=None)


@contextmanager
def in_this_process(start_ray: Callable[[], object], num_threads: int) -> Iterator[None]:
    """Run the tasks of the block in this process.

    Parameters
    ----------
    start_ray : Callable[[], object]
        Starts Ray, or does nothing if it runs. It is called before work that stays with Ray: the
        language model, images, and tasks on a GPU.
    num_threads : int
        Number of tasks that run at a time.
    """
    here = _Here(LocalTasks(num_threads), start_ray)
    token = _HERE.set(here)
    try:
        yield
    finally:
        _HERE.reset(token)
        here.tasks.close()


@contextmanager
def quiet() -> Iterator[None]:
    """Switch off Ray Data's progress bars and logs; errors still raise, with their own types."""
    import ray.data

    context = ray.data.DataContext.get_current()
    logger = logging.getLogger("ray.data")
    bars = context.enable_progress_bars
    original = context.raise_original_map_exception
    level = logger.level
    context.enable_progress_bars = context.print_on_execution_start = False
    context.raise_original_map_exception = True  # Ray's wrapper loses the cause between processes
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        context.enable_progress_bars = bars
        context.raise_original_map_exception = original
        logger.setLevel(level)


@contextmanager
def user_errors() -> Iterator[None]:
    """Raise a :class:`~recsys.errors.UserError` of a Ray task without Ray's wrapper."""
    try:
        yield
    except Exception as error:
        cause = _user_error(error)
        if cause is None:
            raise
        message = str(cause).split(_RETRY_ADVICE)[0]  # Ray Data appends advice on retries
        raise type(cause)(message) from None


def _user_error(error: BaseException | None, depth: int = 0) -> UserError | None:
    if error is None or depth > 8:
        return None
    inner = getattr(error, "cause", None)
    for candidate in (inner, error.__cause__, error.__context__):
        if (
            isinstance(candidate, BaseException)
            and (found := _user_error(candidate, depth + 1)) is not None
        ):
            return found
    from ray.exceptions import RayTaskError

    if isinstance(error, UserError) and not isinstance(error, RayTaskError):
        return error
    return None


def block_refs(dataset: ray.data.Dataset) -> Iterator[Any]:
    """References to the Arrow blocks of a dataset, as they are produced; the rows do not pass
    through this process.

    Yields
    ------
    ObjectRef
        One block, as soon as its task has ended.
    """
    with quiet(), user_errors():
        for bundle in dataset.iter_internal_ref_bundles():
            # the first execution resets the logger
            logging.getLogger("ray.data").setLevel(logging.CRITICAL)
            assert all(cut is None for cut in bundle.slices), "sources produce whole blocks"
            yield from bundle.block_refs


def piece_refs(pieces: Sequence[Piece]) -> Iterator[Any]:
    """References to the blocks of a table's pieces, in order.

    Ray Data reads many pieces. A few are read by plain tasks, because the import of Ray Data takes
    a second in this process, in two actors and in a worker.

    Yields
    ------
    ObjectRef
        One block; the last one of a task that failed raises its error.
    """
    if len(pieces) > _FEW_PIECES and _HERE.get() is None:
        from recsys.preparation.reading import dataset

        yield from block_refs(dataset(pieces))
        return
    reader = task(_read_piece, "streaming")
    for blocks in [reader.remote(pickle.dumps(piece)) for piece in pieces]:
        yield from blocks


def _read_piece(pickled: bytes) -> Iterator[pa.Table]:
    yield from pickle.loads(pickled).read()


def read_table(pieces: Sequence[Piece]) -> pa.Table | None:
    """All rows of a small table, such as items or users; None when it has no rows."""
    tables = [table for ref in piece_refs(pieces) if (table := fetch(ref)).num_rows]
    return pa.concat_tables(tables, promote_options="permissive") if tables else None


def task(function: Callable[..., Any], num_returns: int | str = 1) -> Any:
    """The function as a task; ``num_returns`` "streaming" is for generators.

    Parameters
    ----------
    function : Callable[..., Any]
        Runs in another process, with pickled arguments, or in this one; it must not change them.
    num_returns : int | str
        Number of objects that it returns, each with its own reference.

    Returns
    -------
    Any
        An object with a method ``remote``, like a remote function of Ray.
    """
    if (here := _HERE.get()) is not None:
        return here.tasks.task(function, num_returns)
    return ray_task(function, num_returns)


def ray_task(function: Callable[..., Any], num_returns: int | str = 1, num_gpus: int = 0) -> Any:
    """The function as a task of Ray in every case, because it needs a GPU or much memory.

    Parameters
    ----------
    function : Callable[..., Any]
        Runs in another process; its arguments are pickled.
    num_returns : int | str
        Number of objects that it returns, each with its own reference.
    num_gpus : int
        GPUs that the task needs.

    Returns
    -------
    Any
        A Ray remote function.
    """
    import ray

    needs_ray()
    return ray.remote(function).options(num_returns=num_returns, num_gpus=num_gpus or None)


def needs_ray() -> None:
    """Start Ray if the tasks run in this process and it does not run yet."""
    if (here := _HERE.get()) is not None:
        here.start_ray()


def put(value: Any) -> Any:
    """A reference to a value that several tasks read."""
    if _HERE.get() is not None:
        return held(value)
    import ray

    return ray.put(value)


def results_of(
    function: Callable[..., Any], pieces: Sequence[Any], limit: int, num_gpus: int = 0
) -> Iterator[Any]:
    """Yield ``function(piece)`` of every piece, in order, from at most ``limit`` parallel tasks.

    Parameters
    ----------
    function : Callable
        Runs in a task, with one piece.
    pieces : Sequence
        The pieces.
    limit : int
        Largest number of parallel tasks.
    num_gpus : int
        GPUs of a task.

    Yields
    ------
    object
        The result of one piece.
    """
    remote: Any = ray_task(_apply, num_gpus=num_gpus)
    running: deque[Any] = deque()
    for piece in pieces:
        if len(running) >= limit:
            yield fetch(running.popleft())
        running.append(remote.remote(function, piece))
    while running:
        yield fetch(running.popleft())


def _apply(function: Callable[..., Any], piece: Any) -> Any:
    return function(piece)


def cluster_resources() -> dict[str, float]:
    """The resources of the cluster: CPU, GPU, …."""
    import ray

    needs_ray()
    resources: Any = ray.cluster_resources
    return dict(resources())


def fetch(ref: Any) -> Any:
    """The value of one reference, or of each in a list; see :func:`user_errors` for exceptions."""
    if isinstance(ref, Future):
        return value_of(ref)
    if isinstance(ref, list) and all(isinstance(one, Future) for one in ref):
        return list(map(value_of, ref))
    import ray

    with user_errors():
        return ray.get(ref)
