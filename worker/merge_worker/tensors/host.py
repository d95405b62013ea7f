"""Memory of tensors on the host as Python sees it."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def host_view(buffer: Tensor) -> memoryview:
    """Return the memory of a host tensor for reads and writes, without numpy."""
    count = buffer.numel()
    if count == 0:
        return memoryview(bytearray())
    return memoryview((ctypes.c_char * count).from_address(buffer.data_ptr())).cast("B")
