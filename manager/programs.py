"""Programs that are attached to this manager from other processes: whose calls, libraries and objects are whose.

Theory of operation
-------------------
A program attaches over a connection (role ``client``) and has a number here; the manager's own process is number 0.  A call's id at the
manager is the program's number above `SHIFT` bits and the program's own id below, so ids of two programs never meet, and whose a call is
can be read off it.

*Libraries* are named by their content, so two programs that install the same one share it, with its warm instances.  It is removed
when the last program that installed it has removed it or is gone.

*Objects.*  What a program has put is pinned for it, as often as it was put, until it says `ReleaseObjects`; results are kept until
then too, and files that it declares until it says `ReleaseFiles`.  When a program is gone its calls are cancelled, unless it asked to keep
them; when the last of its calls has ended everything that was its is let go, results that nobody will read included.

*Calls that were left here* and have a tag are kept, with their results when they have ended, until another program asks for that tag
(`find`).  One that leaves with `KeepCalls` says so first, is told of no more ends, and gives back those that it has not read.  One that is
killed cannot: what it was told is kept here until it says that it has read it (`EndsRead`), unless it has a journal, where it is; of what
programs never read there is a bound (`windlass.manager.unread`).  What is found is the finder's own from then on, under numbers above
`FOUND`, while the core goes on to know them by the ids that they had.

*A program with a journal* that was killed and is started again submits what it does not find there by the keys that it had given it
before: what an earlier life left here by such a key goes on, or has returned, and is the new one's under the id by which it submits it
(`taken_up`).  For that, what is left with a key is kept as is what is left with a tag.  A key says nothing of how a call is to be run,
and that may be what was mended before the program was started again: what has not been sent to a worker is taken out and submitted as it is
said now, and so is what runs on other terms, whose run ends.

This is a core: what the shell is to do comes out in ``unpin``, ``discard``, ``remove`` and ``warn``, to be taken after each event.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Literal

import msgspec
from msgspec.structs import replace

from windlass.framing import ProtocolError, batches
from windlass.manager.unread import Unread
from windlass.messages import (
    RETURNED,
    CallDone,
    CallId,
    CallOptions,
    CallsDone,
    CallsFound,
    CallSpec,
    FileName,
    LibraryId,
    ObjectName,
    SubmitCalls,
)

#: Bits of a program's own call ids: a million calls per second for twelve days.
SHIFT: Final = 40
_OWN: Final = (1 << SHIFT) - 1
#: A program's own ids from here on are of calls that it found.
FOUND: Final = 1 << (SHIFT - 1)
#: Calls in one `CallsFound`.
_FOUND_MOST: Final = 5_000
#: Options that are remembered, so that the core knows equal ones as the same.
_OPTIONS_MOST: Final = 1000
#: Programs whose names are remembered, for people who look at their calls.
_NAMES_MOST: Final = 1000
#: What becomes of a call that an earlier life left here: it is the new one's as it runs; the core has it no more; its end is to come, for
#: nobody.
Fate = Literal["goes on", "withdrawn", "ends"]
#: Who has found calls whose ends are nobody's any more.
_NOBODY: Final = (0, CallId(0))
#: Bytes of ends in one `CallsDone`, well under the limit of a frame.
_DONE_BYTES: Final = 256 << 10


class Program(msgspec.Struct, eq=False):
    """One program that is, or was, attached."""

    number: int
    name: str
    #: It has said that it has calls to come; one that only asks for the status has not.
    working: bool = False
    #: Its calls go on when it is gone.
    keep: bool = False
    gone: bool = False
    #: What its calls needed is let go.
    let_go: bool = False
    #: It is about to go, and hears of no more ends.
    leaving: bool = False
    #: It is gone, and its calls with it.
    forsaken: bool = False
    #: It says which ends it has read, and those with a tag that it was told of and has not read, by its own ids.
    tells_read: bool = False
    unread: dict[CallId, CallDone] = msgspec.field(default_factory=dict[CallId, CallDone])
    #: The manager's ids of its calls that have not ended.
    calls: set[CallId] = msgspec.field(default_factory=set[CallId])
    #: Ends of its calls with a tag, which came when it was gone or leaving, or which it gave back.
    ended: dict[CallId, CallDone] = msgspec.field(default_factory=dict[CallId, CallDone])
    #: Calls of others that it found and that have not ended: its own ids of them, and the manager's.
    found: dict[CallId, CallId] = msgspec.field(default_factory=dict[CallId, CallId])
    #: How many it has found so far.
    finds: int = 0
    libraries: set[LibraryId] = msgspec.field(default_factory=set[LibraryId])
    pins: Counter[ObjectName] = msgspec.field(default_factory=Counter[ObjectName])
    #: For which of its uses it put them last.
    uses: dict[ObjectName, int] = msgspec.field(default_factory=dict[ObjectName, int])
    #: Files that it has declared, as often as it did.
    files: Counter[FileName] = msgspec.field(default_factory=Counter[FileName])
    #: Objects of results that it was told of and has not released.
    results: set[ObjectName] = msgspec.field(default_factory=set[ObjectName])
    #: What its journal is called; by what it would submit its calls that have not ended again; and what earlier lives of it left so.
    journal: str = ""
    keys: dict[CallId, bytes] = msgspec.field(default_factory=dict[CallId, bytes])
    earlier: dict[bytes, CallId] = msgspec.field(default_factory=dict[bytes, CallId])


class Programs:
    """All programs of one manager."""

    def __init__(self) -> None:
        self.known: dict[int, Program] = {}
        #: Of those that have submitted calls, the newest, also when they are gone.
        self._names: dict[int, str] = {}
        #: For the shell: objects to unpin and to discard in the store, library versions to remove from the core.
        self.unpin: list[ObjectName] = []
        self.discard: list[ObjectName] = []
        self.remove: list[LibraryId] = []
        #: For the core: declarations of files that are over, and whether replicas are to go.
        self.release: list[tuple[FileName, bool]] = []
        #: For the log.
        self.warn: list[str] = []
        #: What is to be found of ends that programs were told of, until they read them.
        self.unread = Unread()
        self._has_warned = False
        #: Calls that were found by others than their programs: by whom, and its own ids of them.
        self._taken: dict[CallId, tuple[int, CallId]] = {}
        self._numbers = 0
        self._options: dict[CallOptions, CallOptions] = {}

    @property
    def working(self) -> int:
        """How many are here with calls to come."""
        return sum(program.working and not program.gone for program in self.known.values())

    def join(self, name: str) -> Program:
        """A program has attached."""
        self._numbers += 1
        program = self.known[self._numbers] = Program(self._numbers, name)
        return program

    def name_of(self, call: CallId) -> tuple[str, CallId]:
        """Whose a call is, and its own id of it; "" is the manager's own process."""
        number = call >> SHIFT
        here = self.known.get(number)
        name = here.name if here is not None else self._names.get(number) or f"program {number}, which is gone"
        return name if number else "", CallId(call & _OWN)

    def submitted(self, program: Program, message: SubmitCalls) -> list[CallSpec]:
        """Its calls, as the core gets them.

        Raises:
            ProtocolError: an id is none, or is one of a call that has not ended; then none of them counts.
        """
        options = self._options.get(message.options)
        if options is None:
            if len(self._options) >= _OPTIONS_MOST:
                self._options.clear()
            options = self._options[message.options] = message.options
        base, library = program.number << SHIFT, message.library
        specs: list[CallSpec] = []
        fresh: set[CallId] = set()
        keys: dict[CallId, bytes] = {}
        for call in message.calls:
            if not 0 < call.call < FOUND:
                raise ProtocolError(f"program {program.name} submitted a call with the id {call.call}, which cannot be one")
            number = CallId(base | call.call)
            fresh.add(number)
            if call.key:
                keys[number] = call.key
            rest = (call.inputs, call.keep, call.sandbox, call.tag, b"", call.trace)
            specs.append(CallSpec(number, library, call.function, call.payload, call.spans, options, *rest))
        found = any(call.call in program.found for call in message.calls) if program.found else False
        if len(fresh) < len(specs) or found or not fresh.isdisjoint(program.calls):
            raise ProtocolError(f"program {program.name} submitted two calls under one id")
        program.calls |= fresh
        program.keys.update(keys)
        if program.number not in self._names:
            self._names[program.number] = program.name
            if len(self._names) > _NAMES_MOST:
                del self._names[next(iter(self._names))]
        return specs

    def has_journal(self, program: Program, journal: str) -> None:
        """It has a journal, which nobody else has: what others that had it left here is of its earlier lives."""
        program.journal = journal
        lives = [one for one in self.known.values() if one.gone and one.journal == journal] if journal else []
        for one in lives:
            program.earlier.update((key, call) for call, key in one.keys.items() if call not in self._taken)
        # What has a tag is kept however it ended, and a later life may have run it again since.
        for one in lives:
            program.earlier.update(
                (done.end.key, call) for call, done in one.ended.items() if done.end.key and done.end.outcome == RETURNED
            )

    def taken_up(
        self, program: Program, message: SubmitCalls, specs: list[CallSpec], meet: Callable[[CallId], Fate]
    ) -> tuple[list[CallSpec], list[CallsDone]]:
        """Of the calls that it has just `submitted`, those that an earlier life of it left here are its own: which are to be run, and what
        to tell it of others that have returned. What ended otherwise is run again. ``meet`` does what is to be done with one that has not
        ended, and says what that was."""
        rest: list[CallSpec] = []
        done: list[CallDone] = []
        lives: dict[int, Program] = {}
        for sent, spec in zip(message.calls, specs, strict=True):
            call = program.earlier.pop(sent.key, None) if sent.key else None
            left = self.known.get(call >> SHIFT) if call is not None else None
            if call is None or left is None:
                rest.append(spec)
                continue
            end = left.ended.get(call)
            if end is not None and end.end.outcome == RETURNED:
                del left.ended[call]
                self.unread.forget(call)
                done.append(self._told(program, left, end, sent.call))
            elif call in left.calls and call not in self._taken:
                lives[left.number] = left
                fate = meet(call)
                if fate == "withdrawn":
                    left.calls.discard(call)
                    left.keys.pop(call, None)
                else:
                    self._taken[call] = (program.number, sent.call) if fate == "goes on" else _NOBODY
                if fate != "goes on":
                    rest.append(spec)
                    continue
                program.found[sent.call] = call
            else:
                rest.append(spec)
                continue
            program.calls.discard(spec.call)
            program.keys.pop(spec.call, None)
            lives[left.number] = left
        for left in lives.values():
            self._bury(left)
        return rest, in_frames(done)

    def cancelled(self, program: Program, calls: Iterable[CallId]) -> list[CallId]:
        """The manager's ids of these calls of a program; those that it does not have are left out."""
        base = program.number << SHIFT
        ids = [program.found.get(call) or CallId(base | (call & _OWN)) for call in calls]
        return [call for call in ids if call in program.calls or call in self._taken]

    def removed(self, program: Program, library: LibraryId) -> None:
        """It needs this version no more."""
        if library in program.libraries:
            program.libraries.discard(library)
            self._remove_unused(library)

    def released(self, program: Program, names: Iterable[ObjectName]) -> None:
        """It needs these objects no more."""
        for name in names:
            if name in program.results:
                program.results.discard(name)
                self.discard.append(name)
            elif program.pins[name] > 0:
                program.pins[name] -= 1
                if not program.pins[name]:
                    del program.pins[name]
                    program.uses.pop(name, None)
                self.unpin.append(name)

    def files_released(self, program: Program, names: Iterable[FileName], prune: bool) -> None:
        """It needs these files no more."""
        for name in names:
            if program.files[name] > 0:
                program.files[name] -= 1
                if not program.files[name]:
                    del program.files[name]
                self.release.append((name, prune))

    def ended(self, done: Sequence[CallDone]) -> tuple[list[CallDone], dict[int, list[CallsDone]]]:
        """Ends by whose they are: those of the manager's own process, and what to tell the programs that are here, by number."""
        own: list[CallDone] = []
        theirs: dict[int, list[CallDone]] = {}
        for one in done:
            number = one.end.call >> SHIFT
            if not number:
                own.append(one)
                continue
            call = one.end.call
            program = self.known.get(number)
            if program is None or call not in program.calls:
                self._drop(one)
                continue
            program.calls.discard(call)
            one.end.key = program.keys.pop(call, b"")
            finder, own_id = self._taken.pop(call, (number, CallId(call & _OWN)))
            reader = self.known.get(finder)
            here = reader is not None and not reader.gone
            if reader is not None and here and finder != number:
                del reader.found[own_id]
            if reader is not None and here and not reader.leaving:
                theirs.setdefault(finder, []).append(self._told(reader, program, one, own_id))
            elif (here or finder == number) and _can_be_found(one) and not program.forsaken:
                program.ended[call] = one  # until somebody asks for it
            else:
                self._drop(one)
            self._bury(program)
        self._drop_surplus()
        return own, {number: in_frames(ends) for number, ends in theirs.items()}

    def _told(self, program: Program, submitter: Program, done: CallDone, own: CallId) -> CallDone:
        """The end of a call as this program is told of it: its objects are the program's to release."""
        if submitter.journal != program.journal:
            done.end.key = b""
        if done.end.kept:
            program.files.update(FileName(span.name) for span in done.end.spans)
        else:
            program.results.update(span.name for span in done.end.spans)
        done.end.call = own
        if program.tells_read and done.tag and not done.end.kept:
            program.unread[own] = done
            self.unread.note(_here(program, own), done)
        return done

    def _drop(self, done: CallDone) -> None:
        """Nobody wants this result."""
        if done.end.kept:
            self.release += ((FileName(span.name), True) for span in done.end.spans)
        else:
            self.discard += [span.name for span in done.end.spans]

    def find(self, program: Program, tag: str, told: Callable[[CallId], tuple[str, float]]) -> tuple[list[CallsFound], list[CallsDone]]:
        """Give it the calls with this tag of programs that have left: what to tell it. ``told`` has the tag of a call that has not ended,
        and when it was queued."""
        found: list[tuple[CallId, float, bytes]] = []
        done: list[CallDone] = []
        for left in [one for one in self.known.values() if one.gone]:
            mine: list[tuple[CallId, float, CallDone | None]] = []
            for call in left.calls:
                known, queued_at = told(call) if call not in self._taken else ("", 0.0)
                if known == tag:
                    mine.append((call, queued_at, None))
            mine += [(call, one.queued_at, one) for call, one in left.ended.items() if one.tag == tag]
            for call, queued_at, end in sorted(mine, key=lambda one: one[0]):
                program.finds += 1
                own = CallId(FOUND + program.finds)
                key = (left.keys.get(call, b"") if end is None else end.end.key) if left.journal == program.journal else b""
                found.append((own, queued_at, key))
                if end is None:
                    program.found[own] = call
                    self._taken[call] = (program.number, own)
                else:
                    del left.ended[call]
                    self.unread.forget(call)
                    done.append(self._told(program, left, end, own))
            self._bury(left)
        self._drop_surplus()
        pieces = [found[start : start + _FOUND_MOST] for start in range(0, len(found), _FOUND_MOST)] or [found]
        return [_found(piece, piece is not pieces[-1]) for piece in pieces], in_frames(done)

    def would_leave(self, program: Program, tag: str, told: Callable[[CallId], tuple[str, float]]) -> int:
        """How many calls with this tag would be found if it had left."""
        if not program.keep:
            return 0
        running = sum(told(call)[0] == tag for call in (*program.calls, *program.found.values()) if self._taken.get(call) != _NOBODY)
        return running + sum(one.tag == tag for one in (*program.unread.values(), *program.ended.values()))

    def given_back(self, program: Program, done: Sequence[CallDone]) -> None:
        """Ends that it was told of and has not read, as it leaves: those of calls with a tag are for who finds them, all of them."""
        self._keep(program, done)
        for one in done:
            self.unread.forget(_here(program, one.end.call))

    def _keep(self, program: Program, done: Iterable[CallDone]) -> list[CallDone]:
        """Those of these ends that can be found from now on."""
        kept: list[CallDone] = []
        for one in done:
            call, own = _here(program, one.end.call), one.end.call
            names = {span.name for span in one.end.spans}
            ended = own > 0 and call not in program.calls and own not in program.found
            # What stayed on a worker goes with the program that it was made for, and what came from its own journal is in there.
            if ended and _can_be_found(one) and not one.end.kept and names <= program.results:
                one.end.call = call
                program.ended[call] = one
                program.results -= names
                kept.append(one)
        return kept

    def read(self, program: Program, calls: Iterable[CallId]) -> None:
        """It has read these ends, so nobody is to find them."""
        for call in calls:
            if program.unread.pop(call, None) is not None:
                self.unread.forget(_here(program, call))

    def is_leaving(self, program: Program) -> None:
        """It is about to go, and is told of no more ends: what it has not read is for who finds it, also what it reads now for itself."""
        program.leaving = True
        # Copies: some may not have been sent yet.
        for one in self._keep(program, [replace(one, end=replace(one.end)) for one in self._all_read(program)]):
            self.unread.note(one.end.call, one)

    def _all_read(self, program: Program) -> Iterable[CallDone]:
        """It is to read no more of what it was told: that."""
        unread, program.unread = program.unread, {}
        for call in unread:
            self.unread.forget(_here(program, call))
        return unread.values()

    def _drop_surplus(self) -> None:
        """Nobody finds any more of what programs were told of and never read than there is room for."""
        for call in self.unread.surplus():
            program = self.known[call >> SHIFT]
            done = program.unread.pop(CallId(call & _OWN), None)
            if done is None:
                done = program.ended.pop(call)
                if program.gone:
                    self._drop(done)
                    self._bury(program)
                else:  # it may still hand it over itself
                    program.results.update(span.name for span in done.end.spans)
            if not self._has_warned:
                self._has_warned = True
                self.warn.append(
                    f"programs with keep=True have not read how more than {self.unread.most:,} of their calls with a tag ended"
                    f" (or {self.unread.most_bytes >> 20:,} MiB of results): find() gives the newest of them only; the oldest is of program"
                    f" {program.name}, with the tag {done.tag!r}. Read what ends, with result() or manager.wait(), or give calls that"
                    " nobody is to find no tag"
                )

    def left(self, program: Program, unheard: Iterable[CallDone] = ()) -> list[CallId]:
        """It is gone; the calls that are to be cancelled. ``unheard``: ends that were on their way to it."""
        if program.gone:
            return []
        program.gone = True
        found, program.found = program.found, {}
        if not program.keep:
            # Nobody is to find these again, should they end before they are cancelled: what it had found stays taken.
            program.forsaken = True
            for call, one in program.ended.items():
                self.unread.forget(call)
                self._drop(one)
            program.ended.clear()
            self._all_read(program)
            cancel = [*program.calls, *found.values()]
        else:
            cancel = []
            for call in found.values():
                del self._taken[call]
            self.given_back(program, list(unheard))
            self.is_leaving(program)
        if cancel or not program.calls:
            self._let_results_go(program)
        self._bury(program)
        self._drop_surplus()
        return cancel

    def _bury(self, program: Program) -> None:
        """Let go what was its, if it is gone and so are its calls, and forget it when there is nothing to be found either."""
        if not program.gone or program.calls:
            return
        # What has stayed on a worker is made again where that is lost.
        if not program.let_go and not any(one.end.kept or one.end.outputs for one in program.ended.values()):
            program.let_go = True
            self._let_results_go(program)  # calls that went on may have had them as inputs
            self.unpin += program.pins.elements()
            program.pins.clear()
            self.release += ((name, False) for name in program.files.elements())
            program.files.clear()
            libraries, program.libraries = program.libraries, set()
            for library in libraries:
                self._remove_unused(library)
        if not program.ended:
            self.known.pop(program.number, None)

    def _let_results_go(self, program: Program) -> None:
        self.discard += program.results
        program.results.clear()

    def _remove_unused(self, library: LibraryId) -> None:
        if not any(library in program.libraries for program in self.known.values()):
            self.remove.append(library)

    def check(self) -> None:
        """Invariants between the collections; raises AssertionError."""
        for number, program in self.known.items():
            assert program.number == number
            assert all(call >> SHIFT == number for call in program.calls)
            assert program.keys.keys() <= program.calls
            assert all(count > 0 for count in (*program.pins.values(), *program.files.values()))
            assert all(self._taken[call] == (number, own) for own, call in program.found.items())
            assert not program.unread or (program.tells_read and not program.gone)
            assert all(_here(program, call) in self.unread for call in program.unread)
            assert not program.gone or program.calls or program.ended, f"program {program.name} is gone and has nothing, and is still known"
        assert all(call in self.known[call >> SHIFT].calls for call in self._taken)
        for call in self.unread:
            program = self.known[call >> SHIFT]
            assert call in program.ended or call & _OWN in program.unread


def _can_be_found(done: CallDone) -> bool:
    """Somebody may ask for it, when its program is gone."""
    return bool(done.tag) or bool(done.end.key and done.end.outcome == RETURNED)


def _found(calls: list[tuple[CallId, float, bytes]], more: bool) -> CallsFound:
    keys = tuple(key for _, _, key in calls)
    return CallsFound([(call, queued_at) for call, queued_at, _ in calls], more, keys if any(keys) else ())


def _here(program: Program, own: CallId) -> CallId:
    """The manager's number for what a program knows by this id."""
    return CallId(program.number << SHIFT | (own & _OWN))


def in_frames(done: list[CallDone]) -> list[CallsDone]:
    """Ends in messages that fit into frames."""
    return [CallsDone(piece) for piece in batches(done, lambda one: one.end.about_bytes + 4 * len(one.tag), _DONE_BYTES)]
