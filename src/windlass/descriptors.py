"""Descriptors: how many files and sockets this process may have open.

Theory of operation: the usual soft limit of 1,024 is for programs that use select(2), which knows no larger numbers; the hard limit is
what the system really allows.  So a process raises the first towards the second, but one that is not ours alone only when it is about
to need that: a program with few workers stays as it was.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

#: As many are enough: a worker that moves objects has up to three connections to its manager.
WANTED: Final = 65536
#: A process may have 65,530 mappings (vm.max_map_count), with those of its threads, libraries and memory: where all are ours it has none.
MAPPED_MOST: Final = 32_000
#: As long as one below this number is free they are not scarce; 0: the limit was not asked yet.
_plenty = 0
_found: Any = None
#: The soft limit before it was raised; 0: it was not.
_before = 0


def _resource() -> Any:
    """The standard library's module, whatever lies beside the program."""
    global _found
    if _found is None:
        _found = sys.modules.get("resource")
        if not hasattr(_found, "getrlimit"):
            import sysconfig
            from importlib.machinery import PathFinder
            from importlib.util import module_from_spec

            places = [sysconfig.get_config_var("DESTSHARED") or "", sysconfig.get_path("platstdlib")]
            spec = PathFinder.find_spec("resource", places)
            if spec is None or spec.loader is None:
                import resource as _found  # built in
            else:
                _found = module_from_spec(spec)  # not into sys.modules: the program may mean its own
                spec.loader.exec_module(_found)
    return _found


def limit() -> int:
    """How many descriptors this process may have now."""
    resource = _resource()
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return WANTED if soft == resource.RLIM_INFINITY else soft


def scarce(descriptor: int) -> bool:
    """Whether half of them are in use, though as many are allowed by now as can be, or `MAPPED_MOST`. ``descriptor``: any that is open."""
    global _plenty
    try:
        lowest = os.dup(descriptor)  # of those that are free: others are in use
    except OSError:
        return not raised()
    os.close(lowest)
    if lowest < _plenty:
        return False
    _plenty = min(limit() // 2, MAPPED_MOST)
    if lowest >= _plenty:
        _plenty = min(allow_many() // 2, MAPPED_MOST)
    return lowest >= _plenty


def raised() -> bool:
    """None was left: whether there may be more now."""
    before = limit()
    return allow_many() > before


def allow_many() -> int:
    """Raise the soft limit to `WANTED`, or as far as the hard one lets it; how many there may be now."""
    global _before
    resource = _resource()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED if hard == resource.RLIM_INFINITY else min(hard, WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        _before = _before or soft
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return limit()


def unraised(command: Sequence[str]) -> Sequence[str]:
    """A command that runs this one with the soft limit that this process had at first: what was raised for us is not to be handed on."""
    return ("/bin/sh", "-c", 'ulimit -Sn "$1" && shift && exec "$@"', "sh", str(_before), *command) if _before else command


def opened(open_one: Callable[[], int]) -> int:
    """The descriptor that ``open_one()`` gives; where none is left it is asked again with a higher limit, if there is one to be had."""
    try:
        return open_one()
    except OSError as error:
        if error.errno != errno.EMFILE or not raised():
            raise
    return open_one()


def occupy_standard() -> None:
    """Have descriptors 0 to 2 in use, by /dev/null, where a program was started without them or has closed them, as daemons do.

    A socket or file of ours that got such a number would have written into it whatever writes to standard output or error there, and uvloop
    ends the whole process when it is to close one. What the program starts does not inherit them: to that they are closed, as before.
    Where there is no /dev/null, or no descriptor left, they stay as they are.
    """
    if all(map(_is_open, range(3))):
        return
    with suppress(OSError):
        # The system gives the lowest that is free. None of these three is closed again: another thread may be here, and count on it.
        while (got := os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)) < 3:
            pass
        os.close(got)


def _is_open(number: int) -> bool:
    try:
        fcntl.fcntl(number, fcntl.F_GETFD)  # asks no file server, as fstat does
    except OSError:
        return False
    return True


class Held:
    """A descriptor that is closed when nobody has this any more: a thread may read on after who waited for it has given up."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # by then the interpreter may have taken the module apart
        close(self.descriptor)


def view_of(descriptor: int, *, spare: bool = True) -> memoryview:
    """A private, writable view of a file. A mapping keeps a descriptor for as long as it lives, and there may be tens of thousands of them
    at most: where either runs out the file is read into memory instead. ``spare``: also where they are scarce, as others need them."""
    size = os.fstat(descriptor).st_size
    if size == 0:  # which cannot be mapped
        return memoryview(bytearray())
    if not (spare and scarce(descriptor)):
        import mmap

        try:
            return memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY))
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENOMEM):
                raise
    with open(descriptor, "rb", buffering=0, closefd=False) as file:
        view, place = memoryview(bytearray(size)), 0
        while count := file.readinto(view[place:]):
            place += count
        return view[:place]
