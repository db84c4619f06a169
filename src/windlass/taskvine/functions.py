"""The libraries of TaskVine's manager, and its functions over sequences."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import windlass
from windlass.errors import InputFailed, UsageError
from windlass.manager.call import read_count
from windlass.manager.future import CallFuture
from windlass.taskvine.standing import Standing


class Functions(Standing):
    """A part of `windlass.taskvine.Manager`."""

    # ------------------------------------------------------------ libraries

    def create_library_from_functions(
        self,
        library_name: str,
        *function_list: Callable[..., Any],
        poncho_env: Any = None,
        init_command: str | None = None,
        add_env: bool = True,
        hoisting_modules: Any = None,
        exec_mode: str = "fork",
        library_context_info: Any = None,
        **options: Any,
    ) -> windlass.Library:
        """A library of functions, for `install_library`. ``poncho_env``: an archive of conda-pack or ``windlass environment pack``."""
        if init_command is not None:
            raise UsageError(
                "init_command= is not here: setup= lines of the pool run before its pilots, environment= gives a library its Python"
            )
        if poncho_env is not None:
            options["environment"] = poncho_env
        return windlass.Library.from_functions(
            library_name,
            *function_list,
            add_env=add_env,
            hoisting_modules=hoisting_modules,
            exec_mode=exec_mode,
            library_context_info=library_context_info,
            **options,
        )

    def create_library(self, name: str, *functions: Callable[..., Any], **options: Any) -> windlass.Library:
        """As `windlass.Manager.create_library`."""
        return self.manager.create_library(name, *functions, **options)

    def install_library(self, task: windlass.Library) -> None:
        """Make a library callable."""
        self.manager.install_library(task)

    def remove_library(self, name: str | windlass.Library) -> None:
        """No more calls of it."""
        self.manager.remove_library(name)

    def check_library_exists(self, library_name: str) -> bool:
        """It is installed."""
        return self.manager.check_library_exists(library_name)

    # ------------------------------------------------------------ functions over sequences

    def map(self, fn: Callable[[Any], Any], seq: Iterable[Any], chunksize: int = 1) -> list[Any]:
        """``fn`` of each, in order. Raises what a call raises."""
        return list(self._executor().map(fn, seq, chunksize=chunksize))

    def pair(self, fn: Callable[[tuple[Any, Any]], Any], seq1: Iterable[Any], seq2: Iterable[Any], chunksize: int = 1) -> list[Any]:
        """``fn`` of each pair of one of the first and one of the second."""
        return self.map(fn, itertools.product(seq1, seq2), chunksize)

    def tree_reduce(self, fn: Callable[[list[Any]], Any], seq: Iterable[Any], chunksize: int = 2) -> Any:
        """``fn`` of ``chunksize`` each, of these results again, until there is one."""
        if read_count("chunksize", chunksize) < 2:
            raise UsageError(f"chunksize={chunksize!r} would never come to an end: write chunksize=2")
        items: list[Any] = list(seq)
        executor = self._executor()
        while len(items) > 1:
            items = [executor.submit(fn, items[start : start + chunksize]) for start in range(0, len(items), chunksize)]
        if not items:
            raise UsageError("tree_reduce() of nothing has no result")
        last: Any = items[0]
        if not isinstance(last, CallFuture):
            return last
        error = last.exception()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        if isinstance(error, InputFailed) and error.__cause__ is not None:
            raise error.__cause__  # what the call raised that failed first
        return last.result()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]

    def remote_map(self, fn: str, seq: Iterable[Any], library: str, name: str = "", chunksize: int = 1) -> list[Any]:
        """The library's function of each, in order."""
        del name, chunksize
        futures = [self.manager.submit(windlass.FunctionCall(library, fn, item)) for item in seq]
        return [future.result() for future in futures]

    def _executor(self) -> windlass.Executor:
        return windlass.Executor(None, manager=self.manager)
