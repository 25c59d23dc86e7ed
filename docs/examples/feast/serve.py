"""Histories from a feature store at request time, recommendations from an export.

    python serve.py load EVENTS.parquet    # fill both stores
    python serve.py ask EXPORT USER…       # read each history from the online store and print a
                                           # line of JSON
    python serve.py add USER ITEM [TYPE]   # add an event that happened now: the next answer uses it

The columns of EVENTS.parquet are user_id, item_id, timestamp (seconds) and event_type.

Feast's local provider: a Parquet file as the offline store, SQLite as the online one. It needs
feast, onnxruntime and faiss-cpu, neither torch nor this package.
"""

import json
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
from feast import FeatureStore
from features import histories, user

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "export"))
NAMES = ("items", "times", "types")


def load(events_file: str) -> None:
    """Write one row per user to the offline store, and from there to the online store."""
    events = pd.read_parquet(events_file).sort_values(["user_id", "timestamp"], kind="stable")
    rows = events.groupby("user_id", sort=False).agg(
        items=("item_id", list), times=("timestamp", list), types=("event_type", list)
    )
    rows["event_timestamp"] = [datetime.fromtimestamp(times[-1], UTC) for times in rows["times"]]
    (HERE / "data").mkdir(exist_ok=True)
    rows.reset_index().to_parquet(HERE / "data/histories.parquet", index=False)
    store = FeatureStore(HERE)
    store.apply([user, histories])
    first, last = rows["event_timestamp"].min(), rows["event_timestamp"].max()
    store.materialize(first - timedelta(seconds=1), last + timedelta(seconds=1))


def history(store: FeatureStore, user_id: str) -> dict[str, list]:
    """Read a user's history from the online store; empty lists for a new user."""
    features = [f"histories:{name}" for name in NAMES]
    found = store.get_online_features(
        features=features, entity_rows=[{"user_id": user_id}]
    ).to_dict()
    return {name: list(found[name][0] or []) for name in NAMES}


def add(user_id: str, item_id: str, event_type: str = "interact") -> None:
    """Append an event that happened now to the online store alone; `load` brings it from the logs
    later."""
    store, now = FeatureStore(HERE), int(time.time())
    newest = {"items": item_id, "times": now, "types": event_type}
    row = {name: [[*values, newest[name]]] for name, values in history(store, user_id).items()}
    row |= {"user_id": [user_id], "event_timestamp": [datetime.fromtimestamp(now, UTC)]}
    store.write_to_online_store("histories", pd.DataFrame(row))


def ask(folder: str, user_ids: list[str]) -> None:
    from recommend import Export  # of ../export

    store, export = FeatureStore(HERE), Export(folder)
    for user_id in user_ids:
        events = zip(*history(store, user_id).values(), strict=True)
        request = {
            "history": [
                dict(zip(("item_id", "timestamp", "event_type"), event, strict=True))
                for event in events
            ]
        }
        print(json.dumps({"user_id": user_id, **export.recommend(request)}))


if __name__ == "__main__":
    verb, *words = sys.argv[1:]
    if verb == "load":
        load(words[0])
    elif verb == "add":
        add(*words)
    else:
        ask(words[0], words[1:])
