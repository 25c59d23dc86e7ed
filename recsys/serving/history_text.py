"""The history of a request as text, encoded by the language model at request time.

Why optional: a served model should not need a language model. Where the language model of the
training is installed, new users and users with new events get a text of their whole history.
Otherwise a known user keeps the text of training and a new user has no text; the pooled item
vectors then take its place where ``behaviour.input`` is both. A language model that
``data.text.finetune`` adapted counts as not installed, because the adapter stays with the dataset.

Legend: B requests, T width of the language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys.data.histories import Array
from recsys.data.text_rows import TextRules, compose
from recsys.encoders.text import EncoderSettings, TextEncoder, language_model_fingerprint
from recsys.errors import ConfigError

Past = tuple[Array, Array]  # items and event types of a history, oldest first


class HistoryTextEncoder:
    """Encodes histories as text vectors with the language model that the bundle names in
    ``described``.
    """

    def __init__(
        self, described: dict[str, Any], titles: Sequence[str], event_types: Sequence[str]
    ) -> None:
        self._described, self._titles = described, titles
        self._rules = TextRules(tuple(event_types), True, int(described["max_items"]), 1, 1)

    @cached_property
    def encoder(self) -> TextEncoder | None:
        """The language model; None where it is not installed or has other weights than
        in training.
        """
        name = str(self._described["model"])
        try:
            if language_model_fingerprint(name) != self._described["fingerprint"]:
                return None
            settings = EncoderSettings(
                name,
                int(self._described["max_tokens"]),
                dtype="float32",
                threads=1,
                is_static=self._described.get("encoder") == "static",
            )
            return TextEncoder(settings)
        except (ConfigError, ImportError):
            return None

    def vectors(self, pasts: Sequence[Past | None]) -> Tensor | None:
        """Text vectors of the histories, zero rows for None: [B, T].

        None where there is no text to encode or no language model.
        """
        texts = [
            (
                compose(past[0].tolist(), past[1].tolist(), self._titles, self._rules)
                if past and len(past[0])
                else ""
            )
            for past in pasts
        ]
        rows = [row for row, text in enumerate(texts) if text]
        if not rows or self.encoder is None:
            return None
        vectors_BT = np.zeros((len(texts), self.encoder.dimension), dtype=np.float32)
        vectors_BT[rows] = self.encoder.encode([texts[row] for row in rows])
        return torch.from_numpy(vectors_BT)
