"""What `windlass.joblib`, `windlass.dask` and `windlass.parsl` share: which executor is meant, and what is hoisted for work of others.

Theory of operation
-------------------
*Which executor.* Those libraries have no place for it: a program says ``scheduler=windlass.dask.get`` inside of the ``with`` block of its
executor. So an executor that is named is taken; else the one that this program has open. Where there are none or several, that is an error:
nothing starts by itself on a login node.

*Hoisting.* What these libraries hand over is a call of a function of theirs that calls the user's, which is hidden in its arguments,
where `windlass.functions` does not look for imports. `Runner` gives a function of ours by value that names the modules which the
functions and the arguments seen so far need, so that zygotes have them. Each time that something new is seen it is another function, and
there may be another generation of zygotes: who knows all functions beforehand, shows them all before the first call."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable
from types import CellType, FunctionType, ModuleType
from typing import Any, Final, cast

from windlass import imports
from windlass.errors import NotPicklable, UsageError
from windlass.functions import HOIST
from windlass.manager.executor import Pool, Submitter, View, open_pools

#: Kinds of functions and arguments that are remembered as seen.
_SEEN_MOST: Final = 10_000
#: Layers of wrappers around a function that are looked through.
_WRAPPERS_MOST: Final = 16
#: Bytes of a value in a closure from which on it is not pickled to be looked at.
_LARGE: Final = 1 << 20

_pools_of_managers: weakref.WeakKeyDictionary[Any, Pool] = weakref.WeakKeyDictionary()


def executor_for(given: object, how: str) -> Submitter:
    """The executor that is meant: the given one (or of the given manager), else the only one that is open.

    ``how``: how to name one, for the text of the error. Raises `UsageError`.
    """
    if isinstance(given, Submitter):
        return given
    if given is not None:
        if not hasattr(given, "submit_function"):
            raise UsageError(f"executor={given!r} is no executor of Windlass; write {how}, with pool = windlass.Executor(...)")
        pool = _pools_of_managers.get(given)
        if pool is None:
            pool = _pools_of_managers[given] = Pool(weakref.proxy(given), contextlib.ExitStack())
        return View(pool)
    pools = open_pools()
    if len(pools) > 1:
        raise UsageError(f"{len(pools)} executors are open; say which one is meant: {how}")
    if not pools:
        raise UsageError(f"no executor is open; write this inside of 'with windlass.Executor(\"slurm\", ...) as pool:', or {how}")
    return View(pools[0])


class Runner:
    """Makes functions that do ``run(...)`` where the modules are hoisted that the user's functions need."""

    def __init__(self, run: Callable[..., Any]) -> None:
        self._run = run
        self._seen: set[object] = set()
        self._modules: set[str] = set()
        self._made: Callable[..., Any] | None = None

    def look_at(self, functions: Iterable[Callable[..., Any]], values: Iterable[object] = ()) -> None:
        """These functions will be called, with values like these."""
        for function in functions:
            self._look_at_function(function)
        for value in values:
            kind: Any = type(value)
            if kind not in self._seen and len(self._seen) < _SEEN_MOST:
                self._seen.add(kind)
                self._need([kind.__module__])

    def hoist(self, modules: str | ModuleType | Iterable[str | ModuleType]) -> None:
        """These modules are needed, whatever was seen. Raises `UsageError` for what is none."""
        for module in cast("Iterable[object]", [modules] if isinstance(modules, str | ModuleType) else modules):
            name = getattr(module, "__name__", module)
            if not isinstance(name, str):
                raise UsageError(f"imports: {module!r} is no module; write a list of modules or of their names, as in imports=['numpy']")
            self._need([name])

    def _look_at_function(self, function: Any) -> None:
        for _ in range(_WRAPPERS_MOST):
            inner = getattr(function, "__wrapped__", None)
            if inner is None:
                inner = getattr(function, "func", None)  # a partial
            if not callable(inner):
                break
            function = inner
        plain = imports.plain_function(function)
        # Functions that were made by one line need the same, as a rule, and a program may make a million of them.
        key: Any = plain.__code__ if plain is not None else function if isinstance(function, type) else type(function)
        if key in self._seen or len(self._seen) >= _SEEN_MOST:
            return
        self._seen.add(key)
        if plain is not None and _is_light(plain):
            try:
                self._need(each.module for each in imports.find_imports(plain))
            except (NotPicklable, UsageError):
                pass  # whoever sends it is told
        else:
            self._need([getattr(function, "__module__", None) or type(function).__module__])

    def _need(self, modules: Iterable[str]) -> None:
        wanted = {each.module for each in imports.automatic_imports((name for name in modules if name), ())} - self._modules
        if wanted:
            self._modules |= wanted
            self._made = None

    @property
    def function(self) -> Callable[..., Any]:
        """To be submitted in place of ``run``."""
        if self._made is None:
            run = self._run

            def call(*args: Any, **kwargs: Any) -> Any:
                return run(*args, **kwargs)

            call.__name__ = call.__qualname__ = getattr(run, "__name__", "run")
            setattr(call, HOIST, tuple(sorted(self._modules)))
            self._made = call
        return self._made


def _is_light(function: FunctionType) -> bool:
    """It has no closure over large data, which would be pickled to be looked at."""
    return not any(_is_large(cell) for cell in function.__closure__ or ())


def _is_large(cell: CellType) -> bool:
    try:
        return bool(getattr(cell.cell_contents, "nbytes", 0) > _LARGE)
    except Exception:  # noqa: BLE001 - the cell is empty; or what is in it is a class, like numpy.float32, which has a descriptor there
        return False
