"""Keeping the memory of a process that goes on for long flat."""

import ctypes

# M_MMAP_THRESHOLD of mallopt(3).
_MMAP_THRESHOLD = -3
_LARGE = 1 << 20


def return_large_buffers() -> None:
    """Have every buffer of a megabyte or more returned to the system as soon as it is free.

    By itself glibc raises that bound with each large buffer that is freed, to 32 MB, and keeps what is
    below it in a heap whose gaps add up over thousands of pieces of a document.  Does nothing where the
    C library is another one.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGE)
