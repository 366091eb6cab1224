"""The content of values without parts: numbers, strings, buffers, large plain containers."""

from __future__ import annotations

import marshal
import zlib
from types import BuiltinFunctionType, CodeType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["WORLD", "content"]

MAX_KEPT = 256
"""Bytes that are kept as they are; of more, a checksum is kept."""
MAX_BYTES = 1 << 26
"""Bytes of a buffer that are read whole. A longer one is sampled, and torch's count of its changes is read."""
MIN_PACKED = 32
"""Entries of a container that is read as a whole, if its entries are plain."""

WORLD = ("posix", "nt", "time", "_socket", "select", "fcntl", "_winapi", "resource")
"""Modules whose functions read clocks, files and other processes."""

_EXACT = (int, str, bool, type(None), bytes)
_IMMUTABLE = (complex, range, slice, type(...), type(NotImplemented), CodeType, np.dtype)
_OF_TORCH = (torch.dtype, torch.device, torch.layout, torch.memory_format, torch.finfo, torch.iinfo)


def content(value: Any) -> Any:
    """What there is to compare of a value without parts; None if it has parts.

    Floating-point numbers are compared as text, since NaN differs from itself.
    """
    kind = type(value)
    if kind in _EXACT:
        return kind, value if kind is not bytes else _checksum(value)
    if kind is float or isinstance(value, (*_IMMUTABLE, *_OF_TORCH)):
        return kind, repr(value)
    if isinstance(value, Tensor):
        return _of_tensor(value)
    if kind in (list, tuple, dict, set, frozenset):
        return _packed(value) if len(value) >= MIN_PACKED else None
    return _of_builtin(value) or _of_buffer(value)


def _of_builtin(value: Any) -> Any:
    if isinstance(value, torch.Generator):
        # torch's own generator is the fit's, which restores it.
        own = value is torch.default_generator
        return type(value), b"" if own else _checksum(value.get_state().numpy().tobytes())
    if isinstance(value, BuiltinFunctionType) and (value.__self__ is None or isinstance(value.__self__, ModuleType)):
        # These answer differently from call to call.
        outside = value.__self__ is not None and value.__self__.__name__ in WORLD
        return None if outside else (type(value), value.__name__)
    return None


def _packed(value: Any) -> Any:
    try:
        # Version 2 does not depend on how often an entry is referred to.
        return type(value), _checksum(marshal.dumps(value, 2))
    except ValueError:
        return None


def _of_tensor(value: Tensor) -> Any:
    if value.layout != torch.strided or value.is_meta:
        return value.shape, value._version
    if value.numel() * value.element_size() <= MAX_BYTES:
        whole = value.cpu().resolve_conj().resolve_neg()
        return _checksum((whole.float() if whole.dtype == torch.bfloat16 else whole).numpy().tobytes())
    flat = value.flatten() if value.is_contiguous() else value[..., 0].flatten()
    return value._version, content(flat[:: 1 + len(flat) // 10_000].cpu())


def _of_buffer(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.hasobject:
        return None
    try:
        buffer = memoryview(value)
    except (TypeError, BufferError, ValueError):
        return None
    attributes = {} if isinstance(value, np.ndarray) else getattr(value, "__dict__", {})
    if attributes:
        return None
    if buffer.nbytes > MAX_BYTES and buffer.contiguous:
        flat = buffer.cast("B")
        return type(value), buffer.nbytes, _checksum(flat[:: 1 + buffer.nbytes // 1_000_000].tobytes())
    return type(value), buffer.nbytes, _checksum(buffer.tobytes())


def _checksum(data: bytes) -> Any:
    return data if len(data) <= MAX_KEPT else (len(data), zlib.crc32(data), zlib.adler32(data))
