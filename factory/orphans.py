"""For the command line: what pilots there are whose manager is gone, and whether a batch system takes a request at all.

Theory of operation: pilots leave by themselves when their manager is gone; those that wait in the queue do so when they start, maybe days
later, and take an hour's place in it: these are orphans.  What runs is not ended here: its manager may be alive where this machine cannot
see it, or be about to begin anew with its journal.  All pilots of a user carry the names of their factory and manager, so one query finds
them, whoever submitted them.  A manager counts as gone when this user's state folder has no connection file of it, or when nothing answers
there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from windlass.errors import UsageError, WindlassError
from windlass.factory.backend import PROBE, Backend, Listed, PilotState, SharedBatch, Tag, backend_class, backend_options
from windlass.factory.factory import configuration_of, make_backend, request_of


@dataclass(frozen=True, slots=True)
class Found:
    """One pilot in a batch system, and what is known of its manager: ``running``, ``ended``, or ``unknown`` to this user's state folder."""

    tag: Tag
    state: PilotState
    manager: str

    @property
    def is_orphan(self) -> bool:
        """It waits, and its manager is gone. A manager that waits in the queue itself has no pilots yet."""
        is_manager = self.tag.factory == f"manager-{self.tag.manager}"[:64]  # as windlass.manager_job names it
        return self.manager != "running" and self.state.listed in (Listed.QUEUED, Listed.HELD) and not is_manager

    @property
    def leaves(self) -> bool:
        """It runs, and will find that its manager is gone, if it is."""
        return self.manager != "running" and self.state.listed is Listed.RUNNING


def state_of_manager(name: str) -> str:
    """``running``, ``ended`` or ``unknown``."""
    from windlass.managers import choose_manager

    try:
        return "running" if choose_manager(name).is_running() else "ended"
    except (WindlassError, OSError):
        return "unknown"


def find_pilots(backend: SharedBatch, factory: str = "", ask: Callable[[str], str] = state_of_manager) -> list[Found]:
    """Pilots of this user that have not ended (of one factory, if it is named). Raises `Unreachable`."""
    listed = [
        (tag, state) for tag, state in backend.find() if not factory or tag.factory == factory or tag.factory.startswith(f"{factory}.")
    ]
    managers = {name: ask(name) for name in sorted({tag.manager for tag, _ in listed})}
    return [Found(tag, state, managers[tag.manager]) for tag, state in listed]


def _shared(backend: Backend, what: str) -> SharedBatch:
    if not isinstance(backend, SharedBatch):
        raise UsageError(f"the {backend.name} backend has no queue that outlives it, so there is nothing to {what}")
    return backend


def clean(backend: str, options: Mapping[str, object], *, factory: str = "", remove: bool = False, as_json: bool = False) -> str:
    """List the pilots whose managers are gone, and with ``remove`` end them: what to print.

    Raises `Unreachable`, `UnknownName`, `UsageError`.
    """
    given = {name: value for name, value in options.items() if name != "config"}
    spec = configuration_of(options).spec(backend, given)
    made_by = backend_class(spec.backend)
    known = backend_options(made_by)
    if not given.keys() <= known:
        raise UsageError(f"clean takes the options of the backend only, not {', '.join(sorted(given.keys() - known))}")
    made = cast("Callable[..., Backend]", made_by)(**{name: value for name, value in spec.options.items() if name in known})
    try:
        found = find_pilots(_shared(made, "clean"), factory)
        orphans = [one for one in found if one.is_orphan]
        if remove and orphans:
            made.cancel([one.state.job for one in orphans])
    finally:
        made.close()
    return _as_json(found, remove) if as_json else _as_text(found, orphans, remove, backend)


def _as_json(found: Sequence[Found], remove: bool) -> str:
    rows = [
        {
            "job": one.state.job,
            "state": one.state.listed.value,
            "factory": one.tag.factory,
            "manager": one.tag.manager,
            "manager_is": one.manager,
            "node": one.state.node,
            "reason": one.state.reason,
            "removed": remove and one.is_orphan,
        }
        for one in found
    ]
    return json.dumps({"pilots": rows})


def _as_text(found: Sequence[Found], orphans: Sequence[Found], remove: bool, backend: str) -> str:
    leaving = sum(one.leaves for one in found)
    kept = len(found) - len(orphans) - leaving
    told = [f"{kept} pilot{'s' if kept != 1 else ''} of running managers {'are' if kept != 1 else 'is'} left alone"] if kept else []
    if leaving:
        told.append(f"{leaving} that run{'s' if leaving == 1 else ''} will leave when no manager is found")
    others = "; ".join(told)
    if not orphans:
        return f"no orphans in {backend}" + (f"; {others}" if others else "")
    lines = [f"{'JOB':<16} {'STATE':<9} {'FACTORY':<20} MANAGER"]
    for one in orphans:
        lines.append(f"{one.state.job:<16} {one.state.listed.value:<9} {one.tag.factory:<20} {one.tag.manager} ({one.manager})")
    what = "removed" if remove else "nothing is removed; add --remove to end these"
    return "\n".join([*lines, f"{len(orphans)} orphan{'s' if len(orphans) != 1 else ''}: {what}" + (f"; {others}" if others else "")])


def probe(backend: str, options: Mapping[str, object]) -> str:
    """Submit one pilot that may not start, and remove it: what to print. Raises as `Backend.submit`."""
    made, pool = make_backend(backend, {**options, "pool": options.get("pool", f"{backend}-pool")})
    try:
        job = _shared(made, "probe").probe(replace(request_of(pool, Path("MANAGER/pilot.json")), ticket=PROBE))
    finally:
        made.close()
    return f"probe: {backend} accepted one such pilot as job {job}; it is removed, and has not started"
