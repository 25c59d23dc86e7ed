"""Encoding texts with the packaged language model, in float32 and bfloat16."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np

from benchmarks.gpu_checks.setting import Setting, Skipped, timed
from benchmarks.text_encoding import MODEL, texts
from recsys.encoders.text import PACKAGED, EncoderSettings, TextEncoder


def encoded(setting: Setting) -> dict[str, Any]:
    """Tokens a second by type and batch size, and the cosine of bfloat16 to float32.

    Returns
    -------
    dict
        Texts and tokens a second, and the least and mean cosine.

    Raises
    ------
    Skipped
        The language model is not installed.
    """
    if importlib.util.find_spec(PACKAGED[MODEL]) is None:
        raise Skipped(f"{PACKAGED[MODEL]} is not installed")
    lines = texts(setting.size(20_000, 16))
    found: dict[str, Any] = {"texts": len(lines)}
    vectors: dict[str, Any] = {}
    for kind in ("float32", "bfloat16"):
        for batch_size in (64, 1024) if setting.on_gpu else (64,):
            encoder = TextEncoder(
                EncoderSettings(MODEL, batch_size=batch_size, dtype=kind, gpu=setting.on_gpu)
            )
            encoder.encode(lines[:batch_size])
            tokens = sum(map(len, encoder._tokenizer(lines, truncation=True)["input_ids"]))
            work = _Kept(encoder, lines)
            seconds = timed(work, setting.device)
            vectors[kind] = work.found
            found[f"{kind}, {batch_size} texts at a time"] = {
                "tokens_a_second": round(tokens / seconds),
                "texts_a_second": round(len(lines) / seconds, 1),
            }
    one, two = (v.astype(np.float64) for v in vectors.values())
    cosine_N = (one * two).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(two, axis=1)
    return {
        **found,
        "least_cosine": round(float(cosine_N.min()), 6),
        "mean_cosine": round(float(cosine_N.mean()), 6),
    }


class _Kept:
    """A call that keeps its result."""

    found: Any = None

    def __init__(self, encoder: TextEncoder, lines: list[str]) -> None:
        self.encoder, self.lines = encoder, lines

    def __call__(self) -> None:
        self.found = self.encoder.encode(self.lines)
