"""Encode the attributes of requests as a prepared dataset encodes them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recsys.data.attributes import (
    FIRST_KNOWN,
    MISSING,
    NOT_GIVEN,
    PADDING,
    UNKNOWN,
    AttributeRows,
    Field,
)
from recsys.data.histories import Array
from recsys.errors import RequestError, valid_instead
from recsys.values.absent import is_absent


class RequestEncoder:
    """Encodes attributes of requests; fields that are missing or null are ``NOT_GIVEN``."""

    def __init__(self, fields: Sequence[Field]) -> None:
        self.fields = {field.name: field for field in fields}
        starts = np.cumsum([0, *(field.slots for field in fields)])
        self._start = dict(zip(self.fields, starts[:-1].tolist(), strict=True))
        numbers = [field.name for field in fields if field.kind == "number"]
        self._column = {name: column for column, name in enumerate(numbers)}
        self._codes = {
            field.name: {text: code for code, text in enumerate(field.categories, FIRST_KNOWN)}
            for field in fields
        }
        self.shape = (int(starts[-1]), len(numbers))

    def encode(
        self, given: Sequence[Mapping[str, Any] | None], numbers: Sequence[int] | None = None
    ) -> AttributeRows:
        """Encode one row per request.

        Parameters
        ----------
        given : Sequence[Mapping[str, Any] | None]
            Attributes of each request, by field.
        numbers : Sequence[int] | None
            Numbers of the requests in the call, for messages; None counts from 0.

        Raises
        ------
        RequestError
            A request names an unknown field, or a value has the wrong type.
        """
        codes_XS = np.full((len(given), self.shape[0]), NOT_GIVEN, dtype=np.int32)
        values_XM = np.zeros((len(given), self.shape[1]), dtype=np.float32)
        for index, attributes in enumerate(given):
            for name, value in (attributes or {}).items():
                where = f"request {index if numbers is None else numbers[index]}: attributes.{name}"
                field = self.fields.get(name)
                if field is None:
                    known = valid_instead(
                        name,
                        self.fields,
                        "the model knows",
                        none="none, it was trained without attributes of users",
                    )
                    raise RequestError(f"{where}: unknown field; {known}")
                if value is None:
                    continue
                slots = slice(self._start[name], self._start[name] + field.slots)
                if field.kind == "number":
                    number = np.array(_number(value, where))
                    codes_XS[index, slots] = field.codes_of(number)
                    values_XM[index, self._column[name]] = field.scaled(number)
                else:
                    codes_XS[index, slots] = self._category_codes(field, value, where)
        import torch

        return AttributeRows(torch.from_numpy(codes_XS), torch.from_numpy(values_XM))

    def _category_codes(self, field: Field, value: Any, where: str) -> Array:
        members = [value]
        if field.kind == "list":
            if not isinstance(value, (list, tuple)):
                raise RequestError(
                    f"{where}: got {value!r} ({type(value).__name__}), expected a list of texts"
                )
            members = list(value)
        known_texts = self._codes[field.name]
        texts = [_category(member, where) for member in members if member is not None]
        texts = [text for text in texts if text in known_texts or not is_absent(text)]
        codes = [known_texts.get(text, UNKNOWN) for text in texts]
        known = [code for code in codes if code >= FIRST_KNOWN][: field.slots]
        row = np.full(field.slots, PADDING, dtype=np.int32)
        row[0] = UNKNOWN if codes else MISSING
        row[: len(known)] = known
        return row


def _number(value: Any, where: str) -> float:
    number = finite(value)
    if number is None:
        raise RequestError(
            f"{where}: got {value!r} ({type(value).__name__}), expected a finite number"
        )
    return number


def finite(value: Any) -> float | None:
    """A JSON number as a float; None for other values and for integers too large for a float.

    >>> finite(2), finite(True), finite(float("inf")), finite(10**400)
    (2.0, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _category(value: Any, where: str) -> str:
    """A JSON value as the string that the table would give: true/false, integers as digits."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, (str, int)):
        return str(value).strip()
    raise RequestError(f"{where}: got {value!r} ({type(value).__name__}), expected a text")
