"""Evaluate the graph form of a model without tracing it."""

from __future__ import annotations

import numpy as np
import torch

from recsys.bundle.layout import Bundle
from recsys.export.encoder import Graph, QueryEncoder
from recsys.export.onnx_file import INPUTS
from recsys.export.questions import Examiner


def encoded_and_expected(bundle: Bundle) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores [B, N] of the requests of an export, by the graph form and by the model."""
    examiner = Examiner(bundle)
    tensors, parts = examiner.ask(examiner.questions())
    vectors_ND = bundle.model.item_vectors_ND
    with torch.inference_mode():
        vectors_BD, *rest = Graph(QueryEncoder(bundle.model))(
            *(torch.from_numpy(np.ascontiguousarray(tensors[name])) for name in INPUTS)
        )
    return vectors_BD @ vectors_ND.T + (rest[0] if rest else 0.0), parts.scores(vectors_ND)
