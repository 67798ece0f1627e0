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


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt: what may be free at the end of the heap, and from how many bytes on a block has own pages."""
_OWN_PAGES, _MOST = 8 << 20, 32 << 20
"""Bytes from which on a block has pages of its own inside `at_once`, and glibc's own most."""


@contextmanager
def at_once() -> Iterator[None]:
    """Inside, large blocks go back to the system when they are freed: slower by page faults, but little is left over.

    Between blocks of all sizes that come and go, glibc leaves gaps that take as much again as what is in use.
    """
    _own_pages_from(_OWN_PAGES)
    try:
        yield
    finally:
        _own_pages_from(_MOST)


def _own_pages_from(size: int) -> None:
    """Once told, glibc no longer adapts to what is asked for: the end of the heap would go back with every block."""
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, size)
        mallopt(_TRIM_THRESHOLD, 2 * size)
