"""The query encoder as ONNX: trace it, write it, and compare it with PyTorch on varied queries.

Legend: B queries, D width of the item vectors, N items.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch.export import Dim

from recsys.contributions import Contributions
from recsys.data.histories import Array
from recsys.errors import ArtifactError, Refusal
from recsys.export.encoder import Graph, QueryEncoder
from recsys.export.questions import Examiner, Tensors
from recsys.pace import tell
from recsys.serving.requests import Request

ENCODER: Final = "query_encoder.onnx"
OPSET: Final = 20
# largest allowed difference from PyTorch in a vector, an addition or a score
TOLERANCE: Final = 1e-4
VECTOR, ADDED = "vector", "added"
INPUTS: Final[dict[str, tuple[tuple[str, ...], str]]] = {
    "history": (
        ("batch", "length"),
        "rows of items, the oldest first, 0 after the end; at least one column",
    ),
    "length": (("batch",), "number of events in each history"),
    "event_types": (("batch", "length"), "positions in event_types, 0 after the end"),
    "times": (("batch", "length"), "seconds since 1970 UTC, 0 if unknown"),
    "values": (("batch", "length"), "values of the events, NaN if unknown"),
    "context": (("batch", "length", "columns"), "codes of the context columns, 0 if missing"),
    "asked_at": (("batch",), "time of the request, seconds since 1970 UTC, later than asked_after"),
    "asked_context": (("batch", "columns"), "codes of the context of the request, 0 if missing"),
    "user": (("batch",), "row of the user, -1 for an unknown user"),
    "friends": (
        ("batch", "friends"),
        "rows of the given friends, -1 after the end; at least one column",
    ),
    "attribute_codes": (("batch", "slots"), "codes of attributes, -2 if not given"),
    "attribute_values": (
        ("batch", "numbers"),
        "scaled values of numeric attributes, 0 if not given",
    ),
    "user_text": (("batch", "width"), "vector of the text of a user's history, 0 without"),
}
_FREE: Final = ("batch", "length", "friends")
_AT_A_TIME: Final = 16
_ALONE: Final = 8
_MAX_PAIRS: Final = 2**24  # pairs of events of the same history in a batch
# bytes; larger weights go to a separate file, because one protobuf message holds 2 GiB
_LARGE: Final = 2**30


def write_onnx(folder: Path, examiner: Examiner, without: list[str]) -> dict[str, Any]:
    """Write the graph into a folder, compare it with PyTorch, and return its entry for the
    manifest.

    Parameters
    ----------
    folder : Path
        The folder of the export.
    examiner : Examiner
        Asks varied queries of the bundle's model.
    without : list[str]
        Names of the members to leave out.

    Returns
    -------
    dict[str, Any]
        File, opset, versions, inputs, outputs, members inside and left out, and the self-test.

    Raises
    ------
    ArtifactError
        The model cannot be traced.
    Refusal
        The graph gives other scores than PyTorch.
    """
    model = examiner.bundle.model
    encoder = QueryEncoder(model, without)
    requests = examiner.questions()
    tell(f"tracing the query encoder of {', '.join(model.names)}")
    sample, _ = examiner.ask(requests[:_AT_A_TIME])
    used = _trace(
        Graph(encoder).eval(),
        sample,
        folder / ENCODER,
        [VECTOR, ADDED] if encoder.adds else [VECTOR],
    )
    tell(f"comparing {len(requests)} answers with PyTorch")
    worst = compare(folder / ENCODER, examiner, without)
    # written this way, NaN is refused too
    if not worst <= TOLERANCE:
        raise Refusal(
            f"scores of the graph differ from PyTorch by {worst:.3g}, more than the allowed"
            f" {TOLERANCE:g}, so nothing was exported; export to faiss and parquet, and report this"
            " with the model's configuration"
        )
    inside = [name for name in model.names if name in (*model.trained_names, *encoder.states)]
    return {
        "file": ENCODER,
        "opset": OPSET,
        "versions": _versions(),
        "inputs": [_described(name, sample[name]) for name in used],
        "outputs": _outputs(model.item_vectors_ND.shape, encoder.adds),
        "score": f"{VECTOR} · item vector{f' + {ADDED}' if encoder.adds else ''}",
        "inside": inside,
        "left_out": [name for name in model.names if name in without and name in model.states],
        "without_weight": [name for name in model.names if name not in model.states],
        "holds_of_users": of_users(encoder),
        "self_test": {
            "questions": len(requests),
            "largest_difference": worst,
            "tolerance": TOLERANCE,
        },
    }


def of_users(encoder: QueryEncoder) -> list[str]:
    """The members whose part of the graph has a row per known user."""
    states = {
        name: encoder.model.states[name] for name, _ in encoder.encoders.each()
    } | encoder.states
    mine = [
        name
        for name, state in states.items()
        if any(key == "texts" or "V" in key.split("_")[-1] for key in state)
    ]
    return mine + [name for name, inner in encoder.apart.items() if of_users(inner)]


def _trace(graph: Graph, sample: Tensors, path: Path, outputs: list[str]) -> list[str]:
    """Write the graph; return the inputs that it reads."""
    arguments = tuple(torch.from_numpy(np.ascontiguousarray(sample[name])) for name in INPUTS)
    # at least 1: the exporter treats a size of 0 as a special case
    free = {name: Dim(name, min=1) for name in _FREE}
    shapes = tuple(
        {index: free[axis] for index, axis in enumerate(axes) if axis in free}
        for axes, _ in INPUTS.values()
    )
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                graph,
                arguments,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(INPUTS),
                output_names=outputs,
                dynamic_shapes=shapes,
                verbose=False,
            )
            assert program is not None, "the exporter returns a program"
            # a caller need not send what the model never reads
            used = [value for value in program.model.graph.inputs if value.uses()]
            program.model.graph.inputs[:] = used
            weights = (value.const_value for value in program.model.graph.initializers.values())
            size = sum(tensor.nbytes for tensor in weights if tensor is not None)
            program.save(path, external_data=size > _LARGE)
    except Exception as error:  # a granularity of another package may raise anything
        why = " ".join(str(error.__cause__ or error).split())[:300]
        raise ArtifactError(
            f"the model cannot be traced for ONNX ({type(error).__name__}: {why}); export it to"
            " faiss and parquet, or serve it with this package"
        ) from error
    return [str(value.name) for value in used]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's notes on optional packages and on its own passes."""
    names = ("torch.onnx", "onnxscript", "onnx_ir", "torch.onnx._internal.exporter._registration")
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def compare(path: Path, examiner: Examiner, without: list[str]) -> float:
    """Largest difference from PyTorch in vectors, additions and scores, in batches and one by
    one.

    Parameters
    ----------
    path : Path
        The ONNX file.
    examiner : Examiner
        Asks varied queries of the bundle's model.
    without : list[str]
        Names of the members that the graph leaves out.

    Returns
    -------
    float
        Largest absolute difference.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(
        str(path), _threads(), providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_inputs()]
    model = examiner.bundle.model
    kept = [index for index, name in enumerate(model.names) if name not in without]
    worst = 0.0
    for requests in _together(examiner):
        tensors, parts = examiner.ask(requests)
        found = session.run(None, {name: tensors[name] for name in names})
        worst = max(
            worst,
            _difference(found, parts.of(kept) if without else parts, model.item_vectors_ND.numpy()),
        )
    return worst


def _together(examiner: Examiner) -> Iterator[list[Request]]:
    """Yield the queries in batches of similar lengths, and some of them alone.

    Members compare the events of a history in pairs, so batches of long histories are smaller.

    Yields
    ------
    list of Request
        One batch.
    """
    requests = examiner.questions()
    lengths = examiner.recommender.queries(requests).histories.lengths_U
    batch: list[int] = []
    for index in np.argsort(lengths, kind="stable").tolist():
        if batch and (
            len(batch) == _AT_A_TIME or (len(batch) + 1) * int(lengths[index]) ** 2 > _MAX_PAIRS
        ):
            yield [requests[row] for row in batch]
            batch = []
        batch.append(index)
    yield [requests[row] for row in batch]
    # a graph may be traced for the size of its sample only; a batch of one shows this
    yield from ([request] for request in requests[:_ALONE])


def _threads() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return options


def _difference(found: list[Array], parts: Contributions, vectors_ND: Array) -> float:
    """Largest absolute difference; infinite if a number is not finite."""
    expected_BD = parts.users_BD.numpy()
    added_BN = parts.added.add_to(torch.zeros(len(expected_BD), len(vectors_ND))).numpy()
    found_BN = found[1] if len(found) > 1 else np.zeros_like(added_BN)
    scores = found[0] @ vectors_ND.T + found_BN - (expected_BD @ vectors_ND.T + added_BN)
    gaps = [
        np.abs(gap).max(initial=0.0)
        for gap in (found[0] - expected_BD, found_BN - added_BN, scores)
    ]
    return float(max(gaps)) if np.isfinite(gaps).all() else float("inf")


def _described(name: str, sample: Array) -> dict[str, Any]:
    axes, meaning = INPUTS[name]
    shape = [axis if axis in _FREE else size for axis, size in zip(axes, sample.shape, strict=True)]
    return {"name": name, "type": str(sample.dtype), "shape": shape, "meaning": meaning}


def _outputs(shape: tuple[int, ...], adds: bool) -> list[dict[str, Any]]:
    num_items, width = shape
    vector = {
        "name": VECTOR,
        "type": "float32",
        "shape": ["batch", width],
        "meaning": "vector of the query",
    }
    added = {
        "name": ADDED,
        "type": "float32",
        "shape": ["batch", num_items],
        "meaning": "added to the scores of the items, mostly zero",
    }
    return [vector, added] if adds else [vector]


def _versions() -> dict[str, str]:
    import onnx
    import onnxruntime
    import onnxscript

    modules = {"torch": torch, "onnx": onnx, "onnxscript": onnxscript, "onnxruntime": onnxruntime}
    return {name: str(module.__version__) for name, module in modules.items()}
