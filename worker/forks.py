"""Forks of a slot: those that are ours, and those that a call's function makes.

Theory of operation
-------------------
A batch system sends signals to all processes of a job, and slots survive them (`survive_signals`). Processes that a call's function
forks are no slots: they are to end like any other program's. So a hook in the child takes the handlers away again, and until it has
run signals wait: one between the fork and the child's first line would be survived there.

A fork of ours (`fork`: of a call in mode ``fork``) stays a slot, and has its handlers already. There the hooks do nothing, for in a new
child everything costs: each page that it touches for the first time is a page fault, some microseconds. The hooks of `threading` and
`logging`, which make locks anew that another thread may have held, are a third of what a child that does nothing costs. Where there is no
other thread they are left out: they are imported here, while what they register is ours to look at. All other hooks run.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NoReturn

#: While a fork of ours is made, and whether no other thread can hold a lock then.
_ours = _alone = False


def _unless_alone(hook: Callable[[], object] | None) -> Callable[[], object]:
    def run() -> None:
        if hook is not None and not _alone:
            hook()

    return run


def _register(
    *,
    before: Callable[[], object] | None = None,
    after_in_parent: Callable[[], object] | None = None,
    after_in_child: Callable[[], object] | None = None,
) -> None:
    if getattr(after_in_child, "__module__", "") in ("threading", "logging"):
        before, after_in_parent, after_in_child = (_unless_alone(hook) for hook in (before, after_in_parent, after_in_child))
    hooks = {"before": before, "after_in_parent": after_in_parent, "after_in_child": after_in_child}
    _register_at_fork(**{name: hook for name, hook in hooks.items() if hook is not None})


_register_at_fork: Final[Callable[..., None]] = os.register_at_fork
os.register_at_fork = _register
try:
    for _module in ("threading", "logging"):  # what a library pickles by value needs both anyway
        __import__(_module)
finally:
    os.register_at_fork = _register_at_fork

from windlass.worker.slot_api import STATE  # noqa: E402 - it may import threading

#: Of so many first calls of a slot it is looked what they import, and this many modules are worth a word.
LOOKS: Final = 8
MANY_MODULES: Final = 50
#: So many packages of them are named, the larger ones.
_NAMED: Final = 3

#: Sent to whole jobs by batch systems; see `windlass.worker.zygote`.
_SURVIVED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


def fork() -> int:
    """As `os.fork`, but the child stays what this process is. Raises OSError when there are too many processes."""
    global _ours, _alone
    _ours, _alone = True, len(sys._current_frames()) == 1  # pyright: ignore[reportPrivateUsage]  # it is documented
    try:
        return os.fork()
    finally:
        _ours = _alone = False


def imported_anew(known: int, function: str) -> str:
    """What to tell where this process, a call's in mode ``fork``, has imported much since it had `known` modules; "": nothing."""
    if len(sys.modules) < known + MANY_MODULES:
        return ""
    new = [*sys.modules][known:]
    packages: dict[str, list[str]] = {}
    for name in new:
        packages.setdefault(name.partition(".")[0], []).append(name)
    largest = sorted((names for names in packages.values() if 10 * len(names) >= len(new)), key=len, reverse=True)[:_NAMED]
    wanted = [min(names, key=lambda name: name.count(".")) for names in largest or [new]]
    return f"mode='fork': each call of {function!r} imports {len(new)} modules anew; imports=[{str(wanted)[1:-1]}, 'auto'] hoists them"


def end_forked(error: BaseException | None) -> NoReturn:
    """In a process that a call's function forked, when it leaves the function: end as a program would, for the answer is the parent's."""
    status: object = 0
    try:
        if isinstance(error, SystemExit):
            status = error.code
            if status is not None and not isinstance(status, int):
                print(status, file=sys.stderr)
                status = 1
        elif error is not None:
            status = 1
            import traceback

            traceback.print_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status & 0xFF if isinstance(status, int) else 0)


def watch_forks() -> None:
    """From now on, what user code forks is no slot."""
    os.register_at_fork(before=_hold_signals, after_in_parent=_release_signals, after_in_child=_be_no_slot)


def survive_signals() -> None:
    """Do nothing on signals that a batch system sends to all processes of a job; programs executed from here do not inherit it."""
    for number in _SURVIVED:
        signal.signal(number, _ignored)


def reseed() -> None:
    """Forks of one process would all draw the same numbers; the standard library's generator sees to that itself."""
    numpy_random: Any = sys.modules.get("numpy.random")
    if numpy_random is not None:
        with suppress(Exception):
            numpy_random.seed()
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        with suppress(Exception):  # the one of processors, made by the import; those of devices are made in the fork
            torch.default_generator.seed()


def _ignored(_signal: int, _frame: Any) -> None:
    """Survive: a handler instead of SIG_IGN, because that would be inherited by programs that user code executes."""


def _hold_signals() -> None:
    if not _ours:
        signal.pthread_sigmask(signal.SIG_BLOCK, _SURVIVED)


def _release_signals() -> None:
    if not _ours:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SURVIVED)


def _be_no_slot() -> None:
    """In processes that user code forks: terminate() must work on them."""
    if _ours:
        return
    STATE.forked = True
    for number in _SURVIVED:
        if signal.getsignal(number) is _ignored:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    _release_signals()
