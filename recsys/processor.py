"""What the CPU of this machine does fast.

torch multiplies float32 matrices with MKL, which uses half of the vector width of an AMD processor.
oneDNN, which torch contains too, uses all of it. torch takes oneDNN for float32 only if products
may be less precise (``fp32_precision`` "bf16"). oneDNN makes use of that only in matrix units
(AMX, Arm). Other processors get float32 products with float32's error, which is checked.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final

_AMD: Final = "AuthenticAMD"
_VECTORS: Final = "avx512_bf16"  # without it, torch does not take oneDNN
_MATRIX_UNITS: Final = frozenset({"amx_bf16", "amx_tile", "bf16"})
_TINY: Final = 2.0**-10  # lost when 1 + _TINY is rounded to bfloat16
_SIZE: Final = 64
_TRIM_THRESHOLD: Final = -1  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h
_MMAP_THRESHOLD: Final = -3


@lru_cache(maxsize=1)
def _described() -> tuple[str, frozenset[str]]:
    """Vendor and instruction sets of the first processor, as Linux names them."""
    vendor, flags = "", frozenset[str]()
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            name, _, value = line.partition(":")
            vendor = value.strip() if name.strip() == "vendor_id" else vendor
            if name.strip() in ("flags", "Features"):
                flags = frozenset(value.split())
                break
    return vendor, flags


def cpu_flags() -> frozenset[str]:
    """Instruction sets of this processor, with the names that Linux and torch use.

    Why not always torch's list: its import takes more than a second, and a `prepare` that finds
    all vectors in the cache needs nothing else of torch.
    """
    flags = _described()[1]
    if flags:
        return flags
    import torch

    return frozenset(name for name, has in torch.cpu.get_capabilities().items() if has is True)


def is_fast_in_bfloat16() -> bool:
    """Whether bfloat16 products are faster than float32 ones.

    With matrix units they are, and on an AMD EPYC with vector instructions for them (2.1 times as
    fast). On an Intel Xeon with such vector instructions alone they had half the speed.
    """
    return _has_matrix_units() or _is_wide_amd()


def _has_matrix_units() -> bool:
    return bool(_MATRIX_UNITS & cpu_flags())


def _is_wide_amd() -> bool:
    """Whether this is an AMD processor with AVX-512, without matrix units."""
    return _described()[0] == _AMD and _VECTORS in cpu_flags() and not _has_matrix_units()


def choose_matrix_library() -> None:
    """Let oneDNN instead of MKL multiply float32 matrices of torch where it is faster and as
    precise; for the whole process, on the CPU alone.

    On AMD processors with AVX-512 it takes half the time. Others keep MKL. The choice depends only
    on the processor, so that repeated runs round alike.
    """
    if not _is_wide_amd() or multiplies_with_onednn():
        return
    import torch

    products = _products()
    before = products.fp32_precision
    products.fp32_precision = "bf16"
    ones = torch.full((_SIZE, _SIZE), 1 + _TINY)
    if abs(float((ones @ ones)[0, 0]) / _SIZE - (1 + _TINY) ** 2) > 1e-6:
        products.fp32_precision = before


def keep_freed_memory() -> None:
    """Let the C library keep up to 64 MB of freed memory, for the whole process.

    By default glibc returns blocks of more than 128 KB to the system as soon as they are free. The
    next tensor gets new pages, and the first write to each of them costs more than many operations
    on it. glibc raises its limits to these values itself when it has freed a block of 32 MB.
    """
    # no such function outside glibc
    with suppress(OSError, AttributeError):
        c_library = ctypes.CDLL(None)
        c_library.mallopt(_MMAP_THRESHOLD, 2**25)
        c_library.mallopt(_TRIM_THRESHOLD, 2**26)


def multiplies_with_onednn() -> bool:
    """Whether oneDNN multiplies float32 matrices on the CPU of this process.

    torch's attention kernel for CPUs makes many small products, which then take five times as long;
    plain products of whole matrices are faster there.
    """
    return bool(_products().fp32_precision == "bf16")


def _products() -> Any:
    """Torch's settings of oneDNN for matrix products."""
    import torch

    backend: Any = torch.backends.mkldnn  # its types do not name the setting
    return backend.matmul
