"""Places that files come from and that do not answer for a while: what is waited for there, for how long, and when somebody is to look.

Theory of operation
-------------------
A file server, web server or shared file system may stand still for minutes.  Who could not read a file's origin tries again after growing
pauses.  When that has failed `ORIGIN_TRIES` times and nobody has the file, it is *away*: what needs it goes back to the manager and waits
there, so that slots run other calls, and one worker after the other is sent to look (a *probe*), as a single node may be ill.  Files of
one *place* are likely to be away together.  So while one of a place is, a single failure is enough for another; one probe at a time goes
there, for one of its files after the other; and when something has come from there all of them are tried again.  One that fails then as
well is *alone*, a place of its own: it is for itself to come, and what else comes from there neither ends its time nor wakes its calls.

A file that is away for longer than ``patience`` is lost.

A core: `now` is an argument; `windlass.manager.replicas` says what is to be done.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from windlass.manager.ties import ORIGIN_TRIES, File
from windlass.messages import FileName, FileOrigin, WorkerId
from windlass.units import show_seconds

#: Seconds for which a file is waited for that cannot be had just now.
PATIENCE: Final = 600.0
#: Who looks, and has said nothing for so many seconds, is on a node that hangs, or reads a large file: another one looks, too.
PROBE_SECONDS: Final = 120.0


class Place(msgspec.Struct, eq=False):
    """One that does not answer."""

    #: Its files that are away; the first is the next to be looked for.
    files: dict[FileName, File]
    #: When it may be looked at again, and when the first file will have been away for too long.
    not_before: float
    over_at: float
    #: What was looked for last, and when.
    probe: FileName = FileName("")
    probed_at: float = 0.0
    #: Who had no room for that.
    full: set[WorkerId] = msgspec.field(default_factory=set[WorkerId])

    @property
    def looked_at(self) -> int:
        """So many look just now, or have found it back and read all of what they were sent for."""
        probed = self.files.get(self.probe)
        return len(probed.fetching) if probed is not None else 0

    def due(self, now: float) -> bool:
        """Somebody is to look."""
        return now >= (self.probed_at + PROBE_SECONDS if self.looked_at else self.not_before)


class Away:
    """All files of a manager that are away."""

    def __init__(self) -> None:
        self.patience = PATIENCE
        #: Those that are no more: calls that wait for them are to be looked at again.
        self.returned: list[FileName] = []
        #: What people are to be told.
        self.warnings: list[str] = []
        self.places: dict[str, Place] = {}

    def lasts(self, file: File) -> bool:
        """Its origin has failed, and is likely to do so for a while."""
        return file.failures >= ORIGIN_TRIES or _key(file) in self.places

    def over(self, file: File, now: float) -> bool:
        """Its origin has failed for too long."""
        return now - file.since >= self.patience

    def told(self, file: File, text: str, now: float) -> str:
        """What those are told who have waited for it in vain."""
        return f"{text} (tried for {show_seconds(now - file.since)}; Manager(file_patience=...) waits longer)"

    def add(self, file: File, text: str) -> None:
        """It is away, or is so still, as ``text`` says."""
        if not self.places:
            self.warnings.append(
                f"a file cannot be had now: {text}; what needs it waits up to {show_seconds(self.patience)} (file_patience) while it is"
                " tried again, other calls go on; windlass files shows what is waited for"
            )
        over_at = file.since + self.patience
        place = self.places.setdefault(_key(file), Place({}, 0.0, over_at))
        place.files.pop(file.ref.name, None)  # the next time another one is looked for
        place.files[file.ref.name] = file
        place.not_before, place.over_at = file.not_before, min(place.over_at, over_at)
        place.full.clear()
        file.away = text

    def no_room(self, file: File, worker: WorkerId) -> None:
        """Who was sent to look cannot keep it: another one is to do so."""
        if file.away:
            place = self.places[_key(file)]
            place.full.add(worker)
            place.probed_at = place.not_before = 0.0

    def end(self, file: File) -> list[FileName]:
        """It is away no more, for whatever reason. Which files are not."""
        if not file.away:
            return []
        key = _key(file)
        place = self.places[key]
        del place.files[file.ref.name]
        if not place.files:
            del self.places[key]
        file.away = ""
        self.returned.append(file.ref.name)
        return [file.ref.name]

    def came(self, file: File) -> list[FileName]:
        """It has come from its origin: its place is not away any more. Which files are not."""
        names = self.end(file)
        place = self.places.get(place_of(file.origin))
        for one in list(place.files.values()) if place is not None else ():
            names += self.end(one)
            one.alone = True
        return names

    def expired(self, now: float) -> Iterator[File]:
        """Those that have been away for too long. Not while somebody looks, who may be reading them: a fetch that hangs ends by itself."""
        for place in list(self.places.values()):
            if now >= place.over_at and not place.looked_at:
                over = [one for one in place.files.values() if self.over(one, now) and not one.fetching]
                yield from over
                place.over_at = min((one.since for one in place.files.values()), default=now) + self.patience


def _key(file: File) -> str:
    """Of its place."""
    return file.ref.name if file.alone else place_of(file.origin)


def place_of(origin: FileOrigin) -> str:
    """What is away as one: a web server, or about one file system, where the nodes see it or where the manager does."""
    if origin.url:
        return "/".join(origin.url.split("/")[:3])
    return ("shared:" if origin.shared else "here:") + "/".join((origin.shared or origin.path).split("/")[:2])
