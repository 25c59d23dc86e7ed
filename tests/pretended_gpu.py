"""Pretend that there is a GPU: tensors that are "moved" to it stay in CPU memory with a mark, and
mixing them with others raises, as on a card.

Why: most faults of code that never ran on a GPU are tensors on the wrong device. A mark belongs to
the memory of a tensor, so views have it too. ``Tensor.device`` tells the pretended device, so that
code with a branch for GPUs takes it. Gradients that torch computes have no mark of their own: a
tensor without mark counts as one of the CPU only where code of ours made it, see ``unknown``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

GPU = torch.device("cuda", 0)
_CPU = torch.device("cpu")
# an index on the CPU, and a copy from there, are allowed on a card
_MAY_MIX = {"__getitem__", "copy_", "_has_compatible_shallow_copy_type"}


class PretendedGpu(TorchFunctionMode):
    """Within it, ``cuda`` is a mark on tensors in CPU memory."""

    def __init__(self) -> None:
        super().__init__()
        self._marks: dict[int, StorageWeakRef] = {}

    def is_marked(self, tensor: Tensor) -> bool:
        """Whether a tensor is on the pretended GPU."""
        if tensor.layout != torch.strided:
            return self.is_marked(tensor.values())
        key = _storage(tensor)._cdata
        return key in self._marks and not self._marks[key].expired()

    def mark(self, value: Any) -> None:
        """Put a tensor on the pretended GPU."""
        if not isinstance(value, Tensor):
            return
        if value.layout != torch.strided:
            value = value.values()
        storage = _storage(value)
        self._marks[storage._cdata] = StorageWeakRef(storage)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        owner = getattr(func, "__self__", None)
        if name == "__get__" and owner in (Tensor.device, Tensor.is_cuda):
            there = self.is_marked(args[0])
            if owner is Tensor.is_cuda:
                return there
            return GPU if there else func(*args, **kwargs)
        if name == "__get__" and owner is Tensor.grad:
            found = func(*args, **kwargs)
            if found is not None and self.is_marked(args[0]):
                self.mark(found)  # torch's own backward made it
            return found
        if name == "__get__" or name == "__set__":
            return func(*args, **kwargs)
        if func in (Tensor.numpy, Tensor.__array__) and self.is_marked(args[0]):
            raise TypeError("can't convert a tensor of the pretended GPU to numpy; use .cpu()")
        if func in (Tensor.to, Tensor.cpu, Tensor.cuda):
            return self._moved(func, args, kwargs)
        wanted = _device(kwargs.get("device"))
        if wanted is not None:
            kwargs["device"] = _CPU
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        marked = [self.is_marked(tensor) for tensor in tensors]
        if any(marked) and not all(marked) and name not in _MAY_MIX:
            wrong = [t for t, m in zip(tensors, marked, strict=True) if not m and t.dim()]
            if name == "__setitem__":  # also here, indices may be on the CPU
                wrong = [t for t in wrong if t is args[2] or t is args[0]]
            if wrong:
                raise RuntimeError(
                    f"{name}: expected all tensors on the pretended GPU, found shapes"
                    f" {[tuple(t.shape) for t in wrong]} on the CPU"
                )
        found = func(*args, **kwargs)
        there = wanted.type == "cuda" if wanted is not None else any(marked)
        if there and name != "__setitem__":
            for leaf in tree_leaves(found):
                self.mark(leaf)
        return found

    def _moved(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
        """A copy with or without a mark; a change of type alone keeps it."""
        tensor, rest = args[0], list(args[1:])
        wanted = {Tensor.cpu: _CPU, Tensor.cuda: GPU}.get(func) or _device(
            kwargs.pop("device", None)
        )
        if rest and isinstance(rest[0], str | torch.device):
            wanted = _device(rest.pop(0))
        elif rest and isinstance(rest[0], Tensor):
            like = rest.pop(0)
            wanted, rest = GPU if self.is_marked(like) else _CPU, [like.dtype, *rest]
        elif rest and rest[0] is None:
            rest.pop(0)
        before = self.is_marked(tensor)
        there = before if wanted is None else wanted.type == "cuda"
        found = Tensor.to(tensor, _CPU, *rest, **kwargs)
        if there != before and _shares(found, tensor):
            found = found.clone()
        if there:
            self.mark(found)
        return found


def _storage(tensor: Tensor) -> Any:
    plain = (
        tensor.data if type(tensor) is Tensor or isinstance(tensor, torch.nn.Parameter) else tensor
    )
    if hasattr(plain, "_data") and isinstance(plain._data, Tensor):  # torch-geometric's edges
        plain = plain._data
    return plain.untyped_storage()


def _shares(one: Tensor, two: Tensor) -> bool:
    return one.layout != torch.strided or _storage(one)._cdata == _storage(two)._cdata


def _device(given: Any) -> torch.device | None:
    return None if given is None else torch.device(given)


@contextmanager
def pretended_gpu() -> Iterator[torch.device]:
    """The pretended device."""
    make = Tensor._make_wrapper_subclass

    def on_the_cpu(*args: Any, **kwargs: Any) -> Tensor:  # torch-geometric's edges
        return make(*args, **{**kwargs, "device": _CPU})

    Tensor._make_wrapper_subclass = staticmethod(on_the_cpu)  # type: ignore[method-assign]
    try:
        with PretendedGpu():
            yield GPU
    finally:
        del Tensor._make_wrapper_subclass  # that of the base class is there again
