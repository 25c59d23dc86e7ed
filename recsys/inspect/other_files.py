"""Files that hold matrices, vectors or maps in place of rows: what to write instead.

Why: benchmark repositories often publish events as pickled sparse matrices, and features of items
as arrays. They have no names or ids, and reading a pickle may run any code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from recsys.errors import SourceError
from recsys.sources.files import InputFile

_CELLS: Final = '[print(i, j, v, sep=",") for i, j, v in zip(m.row, m.col, m.data)]\' > FILE.csv'
_MATRIX: Final = (
    "a matrix of users and items, or of users and users: write a line per cell with row, column and"
    " value, e.g. with python -c '"
)
_PICKLE: Final = (
    "a pickle of Python, which may run any code when it is read; for "
    f'{_MATRIX}import pickle; m = pickle.load(open("FILE", "rb")).tocoo(); {_CELLS}'
)
_WORDS: Final = {
    ".pkl": _PICKLE,
    ".pickle": _PICKLE,
    ".npz": (
        "arrays of NumPy; for "
        f'{_MATRIX}import scipy.sparse; m = scipy.sparse.load_npz("FILE").tocoo(); {_CELLS}'
    ),
    ".npy": (
        "an array of NumPy without ids; for vectors of items write a Parquet file with an id and a"
        " list of numbers per item, e.g. with python -c 'import numpy, pyarrow, pyarrow.parquet;"
        ' v = numpy.load("FILE").tolist(); pyarrow.parquet.write_table(pyarrow.table({"item_id":'
        ' range(len(v)), "vector": v}), "FILE.parquet")\' if row n is item n, and join it with the'
        " table of items, if there is one"
    ),
    ".mat": (
        "arrays of MATLAB; write a line per row, e.g. with python -c 'import scipy.io;"
        ' [print(*row, sep=",") for row in scipy.io.loadmat("FILE")["NAME"]]\' > FILE.csv, where'
        " NAME is one of those that scipy.io.whosmat lists"
    ),
    ".h5": "HDF5; write its tables as CSV or Parquet, e.g. with pandas.read_hdf or h5py",
    ".pt": "tensors of PyTorch; write a line per event with user and item as CSV or Parquet",
}
_ALIKE: Final = {".hdf5": ".h5", ".hdf": ".h5", ".pth": ".pt"}
_STARTS: Final = {
    b"\x80\x02": ".pkl",
    b"\x80\x03": ".pkl",
    b"\x80\x04": ".pkl",
    b"\x80\x05": ".pkl",
    b"\x93NUMPY": ".npy",
    b"MATLAB 5.0": ".mat",
    b"\x89HDF\r\n": ".h5",
}
_HEAD: Final = 10  # bytes
_LARGE_MAP: Final = 20  # keys from which a JSON object is a map


def why_unread(file: InputFile) -> str:
    """What a file of arrays is and how to write it as a table; empty for other files.

    A file without a telling ending is recognised by its first bytes.
    """
    head = file.read(0, min(_HEAD, file.size))
    suffix = _ALIKE.get(file.suffix, file.suffix)
    by_start = next((kind for start, kind in _STARTS.items() if head.startswith(start)), "")
    return _WORDS.get(suffix) or _WORDS.get(by_start, "")


def refuse_map(objects: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a single object of maps, such as from ids to other ids.

    Raises
    ------
    SourceError
        The values of the only object are maps of texts or numbers.
    """
    if len(objects) != 1:
        return
    maps = [name for name, value in objects[0].items() if isinstance(value, dict)]
    values = [value for name in maps for value in objects[0][name].values()]
    if len(values) >= _LARGE_MAP and not any(isinstance(value, (dict, list)) for value in values):
        raise SourceError(
            f"one object with maps ({', '.join(maps[:4])}), not rows; write a row per pair,"
            ' e.g. with python -c \'import json; [print(*pair, sep=",") for pair in'
            f' json.load(open("FILE"))["{maps[0]}"].items()]\' > FILE.csv'
        )
