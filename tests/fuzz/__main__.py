"""Run one target under atheris, from its seeds, with libFuzzer's options after its name."""

from __future__ import annotations

import importlib
import logging
import sys
import tempfile
from pathlib import Path

TARGETS = (
    *(
        "canonical_text",
        "canonical_jsonl",
        "canonical_parquet",
        "forms",
        "recbole",
        "hetrec",
        "sequences",
        "requests",
    ),
)


def main(words: list[str]) -> int:
    if not words or words[0] not in TARGETS:
        print(
            "usage: python -m tests.fuzz TARGET [libFuzzer options]; targets:"
            f" {', '.join(TARGETS)}",
            file=sys.stderr,
        )
        return 2
    import atheris

    logging.disable(logging.CRITICAL)
    with atheris.instrument_imports(include=["recsys.sources", "recsys.data", "recsys.serving"]):
        target = importlib.import_module(f"tests.fuzz.{words[0]}")
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(target.SEEDS):
            (Path(folder) / f"seed-{number}").write_bytes(seed)
        atheris.Setup([words[0], *words[1:], folder], target.run)
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
