"""Memory: handing back what was freed, afterwards or at once."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_WORTH = 1 << 26
"""Bytes for which it is worth the time."""


def give_back(freed: int = _WORTH) -> None:
    """Return freed memory to the system; glibc keeps it otherwise, gigabytes after a large model was run."""
    if freed < _WORTH:
        return
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


_MMAP_THRESHOLD, _OWN_PAGES, _MOST = -3, 1 << 20, 32 << 20
"""mallopt's parameter, bytes from which on a block has pages of its own inside `at_once`, and glibc's own most."""


@contextmanager
def at_once() -> Iterator[None]:
    """Inside, larger blocks go back to the system when they are freed: slower by page faults, but nothing is left over.

    Between blocks of all sizes that come and go, glibc leaves gaps that take as much again as what is in use.
    """
    _own_pages_from(_OWN_PAGES)
    try:
        yield
    finally:
        _own_pages_from(_MOST)


def _own_pages_from(size: int) -> None:
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, size)
