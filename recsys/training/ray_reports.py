"""What the workers of a training send to its driver, and the driver's thread that receives it.

Why a queue: workers log on their own machines, and Ray Train passes metrics on only with a
checkpoint. Rank 0 puts the report of each epoch into a queue actor. The driver reads it, so one
process prints and writes to MLflow.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from ray.util.queue import Empty, Queue

from recsys.pace import shown_by
from recsys.training.context import Report

USER_ERROR = "user_error"
COUNT = "count"


class ReportReader(threading.Thread):
    """Passes reports from the queue to the driver's callback as they come, and the stop request to
    the workers.
    """

    def __init__(
        self,
        queue: Queue,
        report: Callable[[Report], None],
        stop: threading.Event | None = None,
        orders: Queue | None = None,
    ) -> None:
        super().__init__(daemon=True, name="training-reports")
        self.queue, self.report, self.done = queue, report, threading.Event()
        self.stopping, self.orders = stop, orders
        self.show = shown_by()  # here, because the thread has none of its own
        self.user_error = ""
        self.failure: Exception | None = None

    def run(self) -> None:
        """Pass reports on until :meth:`stop`."""
        while not self.done.is_set():
            self._take(0.5)
            if self.orders is not None and self.stopping is not None and self.stopping.is_set():
                self.orders.put("stop")
                self.orders = None

    def stop(self) -> None:
        """End the thread, after the reports that have arrived."""
        self.done.set()
        self.join(timeout=5)
        while self._take(0.0):
            pass

    def _take(self, timeout: float) -> bool:
        try:
            values = self.queue.get(block=timeout > 0, timeout=timeout or None)
        except Empty:
            return False
        except Exception:  # the queue actor is gone with the cluster
            return False
        if USER_ERROR in values:
            self.user_error = values[USER_ERROR]
            return True
        try:
            if COUNT not in values:
                self.report(values)
            elif self.show is not None:
                self.show(values[COUNT])
        except Exception as error:  # a lost tracking server must not cost hours of training
            self.failure = error
        return True
