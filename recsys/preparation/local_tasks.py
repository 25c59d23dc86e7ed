"""Tasks in threads of this process, in the place of tasks of Ray.

Why: small data are prepared in less time than Ray needs to start. The work is in Arrow, polars and
NumPy, which compute without Python's lock, so threads use all cores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class LocalTasks:
    """Threads that run tasks; a reference to a result is a ``Future``.

    A task may wait for its arguments. This always ends: tasks start in the order of their calls, so
    the tasks that it waits for have started before.
    """

    def __init__(self, num_threads: int) -> None:
        self._pool = ThreadPoolExecutor(num_threads, "task")

    def task(self, function: Callable[..., Any], num_returns: int | str) -> LocalTask:
        """The function as a task; see :func:`recsys.preparation.blocks.task`."""
        return LocalTask(self._pool, function, num_returns)

    def close(self) -> None:
        """Wait for the tasks that run, and drop the others."""
        self._pool.shutdown(cancel_futures=True)


class LocalTask:
    """A function whose calls run in a thread."""

    def __init__(
        self, pool: ThreadPoolExecutor, function: Callable[..., Any], num_returns: int | str
    ) -> None:
        self._pool, self._function, self._num_returns = pool, function, num_returns

    def remote(self, *arguments: Any, **named: Any) -> Any:
        """Start a call; a ``Future`` among the arguments stands for its result.

        Returns
        -------
        Future, list of Future, or iterator of Future
            One for each result: ``num_returns`` of them, or as many as a "streaming" function
            yields.
        """
        streams = self._num_returns == "streaming"
        results: list[Future[Any]] = [
            Future() for _ in range(1 if streams else int(self._num_returns))
        ]
        self._pool.submit(self._run, results, arguments, named)
        if streams:
            return _each(results[0])
        return results if len(results) > 1 else results[0]

    def _run(self, results: list[Future[Any]], arguments: Any, named: dict[str, Any]) -> None:
        try:
            found = self._function(
                *map(value_of, arguments), **{key: value_of(one) for key, one in named.items()}
            )
            if self._num_returns == "streaming":
                found = list(found)
            values = [found] if len(results) == 1 else list(found)
        except BaseException as error:
            for result in results:
                result.set_exception(error)
            return
        for result, value in zip(results, values, strict=True):
            result.set_result(value)


def held(value: Any) -> Future[Any]:
    """A reference to a value."""
    result: Future[Any] = Future()
    result.set_result(value)
    return result


def value_of(reference: Any) -> Any:
    """The result of a ``Future``, when it is there; other values as they are."""
    return reference.result() if isinstance(reference, Future) else reference


def _each(results: Future[list[Any]]) -> Iterator[Future[Any]]:
    yield from map(held, results.result())
