"""Compute recommendations from an export with onnxruntime, FAISS and numpy alone.

    recsys export RUN --to onnx,faiss --out exported
    python recommend.py exported < requests.jsonl

A request is ``{"history": ["51", {"item_id": "52", "timestamp": 1764288000, "event_type": "view"}],
"k": 10}``, the oldest event first; ``at`` is the time of the request, in seconds, ``user`` the row
of a known user, ``exclude_seen`` as in a request to `recsys serve`. An answer is a line of JSON:
item_ids, scores and source.
"""

import json
import sys
import time
from pathlib import Path

import faiss
import numpy as np
import onnxruntime

# defaults; others: 0
NOTHING = {"user": -1, "friends": -1, "attribute_codes": -2, "values": np.nan}


class Export:
    def __init__(self, folder):
        folder = Path(folder)
        self.about = json.loads((folder / "manifest.json").read_text())
        items = json.loads((folder / "items.json").read_text())
        self.ids, self.popularity = items["item_ids"], np.array(items["popularity"])
        self.order_of_equals = np.array(items["order_of_equals"])
        self.rows = {item: row for row, item in enumerate(self.ids)}
        self.vectors = np.load(folder / "item_vectors.npy", mmap_mode="r")
        self.index = faiss.read_index(str(folder / "items.faiss"))
        self.encoder = onnxruntime.InferenceSession(str(folder / "query_encoder.onnx"))

    def inputs(self, events, request):
        """Inputs of the encoder for one request: its events as columns."""
        types, default = self.about["event_types"], self.about["default_event_type"]
        kinds = [types.index(event.get("event_type", default)) if types else 0 for event in events]
        said = {
            "history": [self.rows[event["item_id"]] for event in events],
            "event_types": kinds,
            "times": [event.get("timestamp", 0) for event in events],
        }
        said = {name: [column or [0]] for name, column in said.items()}  # at least one column
        said |= {"length": [len(events)], "asked_at": [request.get("at", int(time.time()))]}
        said |= {"user": [request.get("user", -1)]}
        found = {}
        for wanted in self.about["onnx"]["inputs"]:
            shape = [
                {"batch": 1, "length": max(len(events), 1)}.get(size, size)
                for size in wanted["shape"]
            ]
            shape = [1 if isinstance(size, str) else size for size in shape]
            nothing = np.full(shape, NOTHING.get(wanted["name"], 0))
            found[wanted["name"]] = np.array(
                said.get(wanted["name"], nothing), dtype=wanted["type"]
            )
        return found, kinds

    def events(self, request):
        """The events about known items; each item once where the model's histories have no
        order."""
        events = [
            {"item_id": event} if isinstance(event, str) else event
            for event in request.get("history", [])
        ]
        events = [event for event in events if event["item_id"] in self.rows]
        firsts = {}
        for event in events:
            firsts.setdefault(event["item_id"], event)
        return events if self.about["ordered"] else list(firsts.values())

    def recommend(self, request):
        events, k = self.events(request), request.get("k", 10)
        inputs, kinds = self.inputs(events, request)
        vector, *rest = (output[0] for output in self.encoder.run(None, inputs))
        added = rest[0] if rest else np.zeros(len(self.ids), dtype=np.float32)
        types, targets = self.about["event_types"], self.about["targets"]
        are_hidden = request.get("exclude_seen", self.about["exclude_seen"])
        had = zip(events, kinds, strict=True)
        hidden = {
            self.rows[e["item_id"]]
            for e, kind in had
            if are_hidden and (not targets or types[kind] in targets)
        }
        if not vector.any() and not added.any():
            candidates = np.arange(len(self.ids))
            scores = self.popularity.astype(float)
            source = "popularity"
        else:  # the index does not know the additions, and hidden items must leave enough others
            changed = np.flatnonzero(added)
            depth = (
                max(k, 100) * self.about["faiss"].get("lists_too_long", 1)
                + len(changed)
                + len(hidden)
            )
            _, (named,) = self.index.search(vector[None], min(depth, len(self.ids)))
            candidates = np.union1d(named[named >= 0], changed)
            is_known = bool(events or request.get("friends") or request.get("attributes"))
            scores = self.vectors[candidates] @ vector + added[candidates]
            source = "model" if is_known else "popularity"
        kept = ~np.isin(candidates, list(hidden))
        candidates, scores = candidates[kept], scores[kept]
        best = np.lexsort((self.order_of_equals[candidates], -scores))[:k]
        return {
            "item_ids": [self.ids[row] for row in candidates[best]],
            "scores": scores[best].tolist(),
            "source": source,
        }


if __name__ == "__main__":
    export = Export(sys.argv[1])
    for line in sys.stdin:
        print(json.dumps(export.recommend(json.loads(line))))
