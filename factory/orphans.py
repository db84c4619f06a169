"""For the command line: what pilots there are whose manager is gone, and whether a batch system takes a request at all.

Theory of operation: pilots leave by themselves when their manager is gone; those that wait in the queue do so when they start, maybe days
later, and take an hour's place in it: these are orphans.  What runs is not ended here: its manager may be alive where this machine cannot
see it, or be about to begin anew with its journal.  All pilots of a user carry the names of their factory and manager, so one query finds
them, whoever submitted them.  A manager counts as gone when its port and its lock are free (`windlass.managers`), or when it had no name of
its own and is noted as gone (`windlass.bygone`).  One that this state folder does not know, or that is not reached from here, may be
serving, with its state elsewhere or behind a firewall: its pilots are shown, and ended only for who says of this very manager that it is
gone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from windlass import bygone
from windlass.errors import UsageError, WindlassError
from windlass.factory.backend import PROBE, Backend, Listed, PilotState, SharedBatch, Tag, backend_class, backend_options
from windlass.factory.factory import configuration_of, make_backend
from windlass.factory.launch import request_of
from windlass.identity import state_folder
from windlass.locks import is_free
from windlass.managers import Presence, choose_manager


@dataclass(frozen=True, slots=True)
class Found:
    """One pilot in a batch system, and what is known of its manager: `Presence`."""

    tag: Tag
    state: PilotState
    manager: Presence

    @property
    def waits(self) -> bool:
        """And nobody ends it, if its manager is gone. A manager that waits in the queue itself has no pilots yet."""
        is_manager = self.tag.factory == f"manager-{self.tag.manager}"[:64]  # as windlass.manager_job names it
        return not self.manager.is_there and self.state.listed in (Listed.QUEUED, Listed.HELD) and not is_manager

    def is_orphan(self, gone: Collection[str] = ()) -> bool:
        """It waits, and its manager is gone: that can be told, or somebody says so, who names it in ``gone``."""
        return self.waits and (self.manager is Presence.ENDED or self.tag.manager in gone)

    @property
    def leaves(self) -> bool:
        """It runs, and will find that its manager is gone, if it is."""
        return not self.manager.is_there and self.state.listed is Listed.RUNNING


def state_of_manager(tag: Tag) -> Presence:
    """What can be told of the manager of such pilots; nothing of one that the state folder does not know."""
    try:
        known = choose_manager(tag.manager)
    except (WindlassError, OSError):
        return Presence.ENDED if tag.manager in bygone.names(state_folder() / "managers") else Presence.UNKNOWN
    # Else it is a namesake's, whose state is elsewhere: each factory has a folder in that of its manager.
    ours = (known.path.parent / "pilots" / tag.factory).is_dir()
    found = known.look() if ours else Presence.UNKNOWN
    # One that is about to begin has no port yet, and its lock already.
    return found if found is not Presence.ENDED or is_free(known.lock) else Presence.UNKNOWN


def find_pilots(backend: SharedBatch, factory: str = "", ask: Callable[[Tag], Presence] = state_of_manager) -> list[Found]:
    """Pilots of this user that have not ended (of one factory, if it is named). Raises `Unreachable`."""
    listed = [
        (tag, state) for tag, state in backend.find() if not factory or tag.factory == factory or tag.factory.startswith(f"{factory}.")
    ]
    managers = {tag: ask(tag) for tag in {tag for tag, _ in listed}}
    return [Found(tag, state, managers[tag]) for tag, state in listed]


def _shared(backend: Backend, what: str) -> SharedBatch:
    if not isinstance(backend, SharedBatch):
        raise UsageError(f"the {backend.name} backend has no queue that outlives it, so there is nothing to {what}")
    return backend


def clean(
    backend: str,
    options: Mapping[str, object],
    *,
    factory: str = "",
    gone: Collection[str] = (),
    remove: bool = False,
    as_json: bool = False,
) -> str:
    """List the pilots whose managers are gone, and with ``remove`` end them: what to print.

    ``gone``: managers that are, says the user; it counts where nothing else tells.

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
        orphans = [one for one in found if one.is_orphan(gone)]
        if remove and orphans:
            made.cancel([one.state.job for one in orphans])
    finally:
        made.close()
    return _as_json(found, orphans if remove else ()) if as_json else _as_text(found, orphans, remove, backend)


def _as_json(found: Sequence[Found], removed: Collection[Found]) -> str:
    rows = [
        {
            "job": one.state.job,
            "state": one.state.listed.value,
            "factory": one.tag.factory,
            "manager": one.tag.manager,
            "manager_is": one.manager,
            "node": one.state.node,
            "reason": one.state.reason,
            "removed": one in removed,
        }
        for one in found
    ]
    return json.dumps({"pilots": rows})


def _as_text(found: Sequence[Found], orphans: Sequence[Found], remove: bool, backend: str) -> str:
    leaving = sum(one.leaves for one in found)
    unsure = [one for one in found if one.waits and one not in orphans]
    kept = len(found) - len(orphans) - len(unsure) - leaving
    told = [f"{kept} pilot{'s' if kept != 1 else ''} of running managers {'are' if kept != 1 else 'is'} left alone"] if kept else []
    if leaving:
        told.append(f"{leaving} that run{'s' if leaving == 1 else ''} will leave when no manager is found")
    others = "; ".join(told)
    lines = [f"{'JOB':<16} {'STATE':<9} {'FACTORY':<20} MANAGER"] if orphans or unsure else []
    for one in [*orphans, *unsure]:
        lines.append(f"{one.state.job:<16} {one.state.listed.value:<9} {one.tag.factory:<20} {one.tag.manager} ({one.manager})")
    what = "removed" if remove else "nothing is removed; add --remove to end these"
    text = f"{len(orphans)} orphan{'s' if len(orphans) != 1 else ''}: {what}" if orphans else f"no orphans in {backend}"
    lines.append(text + (f"; {others}" if others else ""))
    if unsure:
        name = unsure[0].tag.manager
        lines.append(
            f"{len(unsure)} of managers of which nothing can be told from here: they may run elsewhere, or with another --state-dir; "
            f"where you know that one is gone: windlass factory clean {backend} --remove --manager {name}"
        )
    return "\n".join(lines)


def probe(backend: str, options: Mapping[str, object]) -> str:
    """Submit one pilot that may not start, and remove it: what to print. Raises as `Backend.submit`."""
    made, pool = make_backend(backend, {**options, "pool": options.get("pool", f"{backend}-pool")})
    try:
        job = _shared(made, "probe").probe(replace(request_of(pool, Path("MANAGER/pilot.json")), ticket=PROBE))
    finally:
        made.close()
    return f"probe: {backend} accepted one such pilot as job {job}; it is removed, and has not started"
