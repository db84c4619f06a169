"""Memory files: memory that has a descriptor and no name.

Theory of operation: memfd_create(2), where this Python has it, for one that was built against an older C library, as conda's are, has not,
and where the kernel lets us; else a file in /dev/shm, or where temporary files go, that has lost its name.
"""

from __future__ import annotations

import os


def memory_file(name: str, size: int = 0, *, append: bool = False) -> int:
    """A descriptor of an anonymous file in memory, not inherited by programs that are executed. Raises `OSError`."""
    try:
        descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
    except (AttributeError, OSError):
        descriptor = _nameless()
    if size:
        os.ftruncate(descriptor, size)
    if append:
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_APPEND)
    return descriptor


def _nameless() -> int:
    import tempfile

    for folder in ("/dev/shm", None):
        try:
            with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
                return os.dup(file.fileno())
        except OSError:
            if folder is None:
                raise
    raise AssertionError("unreachable")
