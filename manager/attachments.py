"""Programs that attach to this manager over connections: their links, and what they say. A part of the manager's shell.

Theory of operation
-------------------
Whose is what is `windlass.manager.programs`' to know; here messages of the role ``client`` become events of that book and of the core, and
ends of calls go to the links of those whose calls they were.  A link that is cut waits for its program; one that is lost (the shell's grace
is over, or its process on this host has ended) or said Goodbye takes the program with it.

Everything runs on the manager's loop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from windlass.framing import ProtocolError
from windlass.links import Link
from windlass.manager.core import Core
from windlass.manager.filedesk import FileDesk
from windlass.manager.listing import list_calls
from windlass.manager.means import ToldMeans
from windlass.manager.programs import Fate, Program, Programs
from windlass.messages import (
    BlockHost,
    BringFiles,
    CallDone,
    CallId,
    CallList,
    CallsDone,
    CancelSubmitted,
    DeclareFile,
    DeclareMade,
    DefineFunctions,
    EndManager,
    EndsRead,
    FindCalls,
    GetStatus,
    GetView,
    Goodbye,
    InstallLibrary,
    KeepCalls,
    Leave,
    ListCalls,
    Message,
    ObjectName,
    PoolName,
    ReleaseFiles,
    ReleaseObjects,
    RemoveLibrary,
    ResumePool,
    Status,
    SubmitCalls,
    View,
)
from windlass.nearby import Process
from windlass.object_store import ObjectStore

log = logging.getLogger("windlass.manager")


class Attachments:
    """The programs that are attached, for the server.

    ``end(reason)`` ends a detached manager, ``status(now, wanted)`` and ``view(ask, now)`` are its answers, and ``resume(pool)`` tells the
    factories.
    """

    def __init__(
        self,
        core: Core,
        store: ObjectStore,
        end: Callable[[str], None],
        status: Callable[[float, str], Status],
        resume: Callable[[PoolName], None],
        files: FileDesk,
        view: Callable[[GetView, float], Sequence[View]],
    ) -> None:
        self.programs = Programs()
        self.links: dict[int, Link] = {}
        #: Processes of programs of this host.
        self._processes: dict[int, Process] = {}
        #: Programs that are cut off, and when each is given up.
        self._cut: dict[int, float] = {}
        #: Programs may end this manager: it is part of none.
        self.detached = False
        self._core, self._store = core, store
        self._end, self._status, self._resume, self._files, self._view = end, status, resume, files, view
        self._means = ToldMeans(core)

    def join(self, link: Link) -> Program:
        """Somebody with the user's credential has connected."""
        program = self.programs.join(link.peer)
        self.links[program.number] = link
        if process := link.process():
            self._processes[program.number] = process
        return program

    def cut(self, program: Program, until: float) -> None:
        """Its connection has ended; it may come back until then."""
        self._cut[program.number] = until

    def resumed(self, program: Program) -> None:
        """It is back."""
        self._cut.pop(program.number, None)

    def give_up_dead(self, now: float) -> None:
        """Programs that are cut off and whose processes have ended will not come back: they have left."""
        for number in [one for one in self._cut if one in self._processes and self._processes[one].has_ended()]:
            link = self.links[number]
            self.left(self.programs.known[number], "its process has ended", now)
            link.close()

    def said(self, program: Program, message: Message, now: float) -> None:
        """It has said something. The caller has the core's decisions carried out."""
        core, programs, link = self._core, self.programs, self.links.get(program.number)
        if link is None:
            return
        match message:
            case SubmitCalls():
                try:
                    specs = programs.submitted(program, message)
                except ProtocolError as error:
                    link.fail(str(error))
                    return
                if program.earlier:
                    specs, ended = programs.taken_up(program, message, specs, lambda call: self._meet(call, message, now))
                    link.send(*ended)
                core.submit(specs, now)
            case CancelSubmitted(calls):
                core.cancel(programs.cancelled(program, calls), now)
            case BlockHost():
                core.block_host(message, now)
            case InstallLibrary(spec):
                program.libraries.add(spec.id)
                core.install(spec, now)
            case RemoveLibrary(library):
                programs.removed(program, library)
            case DefineFunctions(functions):
                core.define(functions)
            case DeclareFile(ref, origin):
                program.files[ref.name] += 1
                self._files.declare(ref, origin)
            case DeclareMade(ref, spec):
                program.files[ref.name] += 1
                core.declare_made(ref, spec)
            case ReleaseFiles(names, prune):
                programs.files_released(program, names, prune)
            case BringFiles(names):
                self._files.bring(program.number, names)
            case ReleaseObjects(names):
                programs.released(program, names)
            case CallsDone(done):
                programs.given_back(program, done)
            case EndsRead(calls):
                programs.read(program, calls)
            case KeepCalls(keep, leaving, journal, tells_read):
                if not program.working:
                    log.info("program %s has attached", program.name)
                    self._has_journal(program, journal, now)
                program.working, program.keep, program.tells_read = True, keep, tells_read
                if leaving:
                    programs.is_leaving(program)
                if not self.tell_means(now):
                    link.send(self._means.last)
            case FindCalls(tag):
                self.give_up_dead(now)
                found, ended = programs.find(program, tag, self._told)
                found[-1] = replace(found[-1], awaited=self._awaited(tag, now))
                link.send(*found, *ended)
            case EndManager(reason):
                if self.detached:
                    self._end(reason)
                else:
                    log.warning("program %s asked this manager to end, but it is part of a program and ends with it", program.name)
            case ResumePool(pool):
                self._resume(pool)
            case GetStatus(wanted):
                link.send(self._status(now, wanted))
            case ListCalls():
                link.send(self.calls(message, now))
            case GetView():
                link.send(*self._view(message, now))
            case Goodbye(reason):
                self.left(program, reason, now)
            case _:
                log.warning("program %s said %s, which its role may not", program.name, type(message).__name__)
        self._let_go(now)

    def left(self, program: Program, reason: str, now: float) -> None:
        """It is gone for good."""
        link = self.links.pop(program.number, None)
        if link is None:
            return
        self._cut.pop(program.number, None)
        self._processes.pop(program.number, None)
        unheard = [one for message in link.unheard() if isinstance(message, CallsDone) for one in message.done] if program.keep else []
        cancel = self.programs.left(program, unheard)
        if program.working:
            kept = len(program.calls) if program.keep else 0
            log.info("program %s has left (%s); %d calls cancelled, %d go on", program.name, reason, len(cancel), kept)
        for other in list(self.programs.known.values()) if program.journal else ():
            if other.journal == program.journal and not other.gone:  # it came before this one was known to be gone
                self.programs.has_journal(other, other.journal)
        self._core.cancel(cancel, now)
        self._let_go(now)

    def _has_journal(self, program: Program, journal: str, now: float) -> None:
        """Whoever had it before is gone, and need not be waited for; but for who is there with a copy of it."""
        for other in list(self.programs.known.values()) if journal else ():
            link = self.links.get(other.number)
            if other.journal == journal and link is not None and (link.mute or other.leaving):
                self.left(other, f"it was started again, as {program.name}", now)
                link.close()
        self.programs.has_journal(program, journal)

    def calls(self, wanted: ListCalls, now: float) -> CallList:
        """Which calls there are, for whoever asks."""
        return CallList(list_calls(self._core, wanted, now, self.programs.name_of))

    def _awaited(self, tag: str, now: float) -> tuple[tuple[str, int, float], ...]:
        """Programs that are not heard of and would leave calls with this tag: how many, and in how many seconds at most they have left."""
        known, grace = self.programs.known, self._core.settings.reconnect_grace
        silent = {number: self._cut.get(number, now + link.patience + grace) - now for number, link in self.links.items() if link.mute}
        awaited = ((known[number], seconds) for number, seconds in silent.items())
        counted = ((one.name, self.programs.would_leave(one, tag, self._told), max(0.0, seconds)) for one, seconds in awaited)
        return tuple(one for one in counted if one[1])

    def _told(self, call: CallId) -> tuple[str, float]:
        """The tag of a call that has not ended, and when it was queued."""
        known = self._core.calls.get(call)
        return (known.spec.tag, known.queued_at) if known is not None else ("", 0.0)

    def _meet(self, call: CallId, message: SubmitCalls, now: float) -> Fate:
        """A call that an earlier life left here is submitted again: it goes on if it is at a worker, and is run as it is said to be now."""
        if self._core.withdraw((call,)):
            return "withdrawn"
        if self._core.runs_as(call, message.options):
            return "goes on"
        self._core.cancel((call,), now)
        return "ends"

    def take_theirs(self, done: list[CallDone], now: float) -> list[CallDone]:
        """Tell programs of the ends of their calls; gives back the ends of calls of the manager's own process."""
        if not self.programs.known:
            return done
        own, theirs = self.programs.ended(done)
        for number, messages in theirs.items():
            link = self.links.get(number)
            if link is not None:
                for message in messages:
                    link.send_now(message)
        self._let_go(now)
        return own

    def tell(self, program: int, message: Message) -> None:
        """Say this to a program, if it is here."""
        link = self.links.get(program)
        if link is not None:
            link.send(message)

    def tell_means(self, now: float) -> bool:
        """Say what there is to run calls with to all who have calls to come, when it is time and something else than they were told before;
        whether it was said."""
        working = [self.links[number] for number, one in self.programs.known.items() if one.working and number in self.links]
        means = self._means.news(len(working), now) if working else None
        if means is None:
            return False
        for link in working:
            link.send(means)
        return True

    def all_links(self) -> Sequence[Link]:
        """Of all that are here."""
        return list(self.links.values())

    def leave(self, reason: str) -> None:
        """The manager ends."""
        for link in self.all_links():
            link.send(Leave(reason))

    def seen(self) -> list[tuple[Program, bool]]:
        """Programs with calls to come or running, and whether each is connected, for the status."""
        known = [one for one in self.programs.known.values() if one.working]
        return [(one, one.number in self.links and self.links[one.number].connected) for one in known]

    def keeper(self, session: str) -> Callable[[ObjectName, int], str]:
        """What keeps an object for the program of this session, after it has put it: it answers "", or why that was not possible."""
        number = next((number for number, link in self.links.items() if session and link.session_id == session), 0)

        def keep(name: ObjectName, use: int) -> str:
            program = self.programs.known.get(number)
            if program is None or program.gone:
                return "its program is not attached any more"
            if use and program.uses.get(name) == use:
                return ""  # the answer was lost in a cut, and it was put again
            try:
                self._store.pin(name)
            except KeyError:
                return "the manager had to let it go at once, as its store is full"
            program.pins[name] += 1
            program.uses[name] = use
            return ""

        return keep

    def _let_go(self, now: float) -> None:
        """Objects and library versions that no program needs any more."""
        programs = self.programs
        while programs.warn:
            log.warning("%s", programs.warn.pop())
        while programs.unpin:
            self._store.unpin(programs.unpin.pop())
        while programs.discard:
            self._store.discard(programs.discard.pop())
        while programs.release:
            name, prune = programs.release.pop()
            self._core.release_files((name,), prune)
        while programs.remove:
            self._core.remove(programs.remove.pop(), now)
