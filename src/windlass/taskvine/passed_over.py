"""What TaskVine's manager has and this one need not: each is passed over with the reason, or refused where a program would go wrong.

Silent are those whose purpose is always met here (encryption, transfers between workers, measuring of memory).
"""

from __future__ import annotations

import inspect
import logging
import os
from typing import Any, Final, NoReturn

import windlass
from windlass.errors import UnknownName, UsageError
from windlass.taskvine.outcomes import no_effect
from windlass.taskvine.standing import Standing

_APPLICATION: Final = logging.getLogger("windlass.application")
#: Arguments of TaskVine's manager that a program can do without, and why they mean nothing.
_AT_START: Final = {
    "shutdown": "workers are always sent away when the manager ends",
    "ssl": "everything goes over TLS 1.3 with certificates that the manager makes",
    "run_info_path": "a manager's files are in its state folder, state_dir=",
    "run_info_template": "a manager's files are in its state folder, state_dir=",
    "staging_path": "large arguments are in memory, and on disk when they are many",
    "status_display_interval": "`windlass status --watch` shows what goes on",
}


class PassedOver(Standing):
    """A part of `windlass.taskvine.Manager`."""

    def _passed_over_at_start(self, options: dict[str, Any]) -> dict[str, Any]:
        """Options for `windlass.Manager`. Raises `UnknownName` for what neither has."""
        kept: dict[str, Any] = {}
        takes = inspect.signature(windlass.Manager.__init__).parameters
        for name, value in options.items():
            if name in _AT_START:
                if value and value is not True:  # what they ask for is always so
                    no_effect(f"Manager({name}={value!r})", _AT_START[name])
            elif name == "prometheus_port":
                if value is not None:
                    kept["metrics"] = value
            elif name == "init_fn":
                if value is not None:
                    raise UsageError("Manager(init_fn=) is not here: call the function with the manager when that is made")
            elif name in takes:
                kept[name] = value
            else:
                raise UnknownName(
                    "option of Manager", name, [*_AT_START, "prometheus_port", *(one for one in takes if one not in ("self", "unknown"))]
                )
        return kept

    # ------------------------------------------------------------ always so

    def enable_peer_transfers(self) -> None:
        """Workers always read from each other."""

    def enable_monitoring(self, watchdog: bool = True, time_series: bool = False) -> None:
        """Memory is always watched, and processor time and memory of commands are in `Task.resources_measured`."""
        if time_series:
            no_effect("time_series=True", "what a task used is told when it has ended")

    @property
    def using_ssl(self) -> bool:
        """Always."""
        return True

    def log_debug_app(self, entry: str) -> None:
        """A line for the logger ``windlass.application``."""
        _APPLICATION.debug("%s", entry)

    def log_txn_app(self, entry: str) -> None:
        """A line for the logger ``windlass.application``."""
        _APPLICATION.info("%s", entry)

    @property
    def runtime_directory(self) -> str:
        """The manager's state folder."""
        return str(self.manager.connection_file.parent)

    @property
    def logging_directory(self) -> str:
        """Where logs of pilots are."""
        return os.path.join(self.runtime_directory, "pilots")

    # ------------------------------------------------------------ without effect

    def disable_peer_transfers(self) -> None:
        """Without effect."""
        no_effect("disable_peer_transfers()", "where workers cannot reach each other they read from the manager by themselves")

    def set_password(self, password: str) -> None:
        """Without effect."""
        no_effect("set_password()", "both sides always show certificates, which the manager makes")

    def set_password_file(self, file: str) -> None:
        """Without effect."""
        no_effect("set_password_file()", "both sides always show certificates, which the manager makes")

    def set_catalog_servers(self, catalogs: object) -> None:
        """Without effect."""
        no_effect("set_catalog_servers()", "there is no catalog: managers are found by name in their owner's state folder")

    def update_catalog(self) -> None:
        """Without effect."""
        no_effect("update_catalog()", "there is no catalog")

    def set_property(self, name: str, value: str) -> None:
        """Without effect."""
        no_effect("set_property()", "there is no catalog")

    def set_priority(self, priority: float) -> None:
        """Without effect."""
        no_effect("set_priority() of a manager", "workers serve one manager; a task has a priority")

    def tasks_left_count(self, ntasks: int) -> None:
        """Without effect."""
        no_effect("tasks_left_count()", "the factory counts what is submitted")

    def set_scheduler(self, scheduler: str) -> None:
        """Without effect."""
        no_effect(f"set_scheduler({scheduler!r})", "workers with a task's files and its library warm come first")

    def set_manager_preferred_connection(self, mode: str) -> None:
        """Without effect."""
        no_effect(f"set_manager_preferred_connection({mode!r})", "workers try each of the manager's addresses")

    def set_keepalive_interval(self, interval: float) -> None:
        """Without effect."""
        no_effect("set_keepalive_interval()", "say it at the start: Manager(heartbeat=5)")

    def set_keepalive_timeout(self, timeout: float) -> None:
        """Without effect."""
        no_effect("set_keepalive_timeout()", "say it at the start: Manager(silence=30)")

    def enable_disconnect_slow_workers(self, multiplier: float) -> None:
        """Without effect."""
        no_effect("enable_disconnect_slow_workers()", "what is queued behind a long task is taken back; give tasks a time_max")

    def enable_disconnect_slow_workers_category(self, name: str, multiplier: float) -> None:
        """Without effect."""
        no_effect("enable_disconnect_slow_workers_category()", "what is queued behind a long task is taken back; give tasks a time_max")

    def initialize_categories(self, filename: str, rm: object) -> None:
        """Without effect."""
        no_effect("initialize_categories()", "there is no file of what earlier tasks used: set_category_first_allocation_guess()")

    def workers_shutdown(self, n: int = 0) -> int:
        """Without effect."""
        no_effect("workers_shutdown()", "idle workers leave by themselves; factory.max_workers = 1 ends more")
        return 0

    # ------------------------------------------------------------ refused

    def enable_tasks_cache(self, *_: Any, **__: Any) -> NoReturn:
        raise UsageError(
            "enable_tasks_cache(): write Manager(journal='run.journal'), which remembers calls of functions (windlass explain journal)"
        )

    def create_library_from_command(self, *_: Any, **__: Any) -> NoReturn:
        raise UsageError("create_library_from_command() is not here: libraries are of Python functions; a function may start any program")

    def create_library_from_serverized_files(self, *_: Any, **__: Any) -> NoReturn:
        raise UsageError("create_library_from_serverized_files() is not here: write create_library_from_functions('name', function, ...)")
