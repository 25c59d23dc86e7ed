"""The model: item tower, granularities and fusion; score(u, i) = u · a_i.

There are two forms. :class:`MultigrainModel` is trained: each step computes a view of the items and
the states of the granularities, with graph convolutions once per step. :class:`FrozenModel` keeps
view and states as plain tensors and needs neither graphs nor a dataset; evaluation, registry and
serving use it. Both share :class:`Encoders`, which turn a batch of users into vectors.
"""

from recsys.model.frozen import FrozenModel
from recsys.model.multigrain import MultigrainModel
from recsys.model.sizes import dump_sizes, load_sizes
from recsys.model.user_encoders import Encoders

__all__ = ["Encoders", "FrozenModel", "MultigrainModel", "dump_sizes", "load_sizes"]
