"""Large calls: read, checked and cut into slices outside the process that answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from recsys.errors import UserError
from recsys.serving.admission import Limits
from recsys.serving.calls import RECOMMEND, CallError, Form, parse_rows, read_rows
from recsys.serving.request_parsing import one_request
from recsys.serving.requests import Job
from recsys.serving.size import slices


@dataclass(frozen=True)
class Slices:
    """A call that another process has read and cut: its rows as JSON lists."""

    form: Form
    parts: tuple[bytes, ...]
    num_requests: int
    longest: int  # items of the longest list
    path: str = RECOMMEND

    def requests(self) -> Iterator[Job]:
        """The slices one by one, each parsed when it is needed.

        Yields
        ------
        Job
            The requests of one slice.

        Raises
        ------
        RequestError
            A request is malformed.
        """
        first = 0
        for part in self.parts:
            rows = json.loads(part)
            yield parse_rows(self.path, rows, first)
            first += len(rows)


def read_ahead(path: str, body: bytes, limits: Limits, num_scored: int) -> Slices | CallError:
    """Read, check and cut a large body outside the process that answers; an error is returned, not
    raised.

    Parameters
    ----------
    path : str
        Path of the call.
    body : bytes
        Its body.
    limits : Limits
        Limits of a call.
    num_scored : int
        Number of items that the model scores for one request.
    """
    try:
        rows = read_rows(path, body)
        limits.bounds.check_number(len(rows.rows))
        with one_request(rows.form == "one"):
            requests = parse_rows(path, rows.rows)
        limits.bounds.check(requests, num_scored)
    except CallError as error:
        return error
    except UserError as error:
        return CallError(400, str(error))
    # as JSON, because the replica parses one slice at a time and must not hold all requests
    parts = tuple(json.dumps(rows.rows[cut]).encode() for cut in slices(requests, num_scored))
    return Slices(
        rows.form,
        parts,
        len(requests),
        max((request.depth for request in requests), default=1),
        path,
    )
