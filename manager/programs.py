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

This is a core: what the shell is to do comes out in ``unpin``, ``discard`` and ``remove``, to be taken after each event.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from windlass.framing import ProtocolError
from windlass.messages import CallDone, CallId, CallOptions, CallsDone, CallSpec, FileName, LibraryId, ObjectName, SubmitCalls

#: Bits of a program's own call ids: a million calls per second for twelve days.
SHIFT: Final = 40
_OWN: Final = (1 << SHIFT) - 1
#: Options that are remembered, so that the core knows equal ones as the same.
_OPTIONS_MOST: Final = 1000
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
    #: The manager's ids of its calls that have not ended.
    calls: set[CallId] = msgspec.field(default_factory=set[CallId])
    libraries: set[LibraryId] = msgspec.field(default_factory=set[LibraryId])
    pins: Counter[ObjectName] = msgspec.field(default_factory=Counter[ObjectName])
    #: Files that it has declared, as often as it did.
    files: Counter[FileName] = msgspec.field(default_factory=Counter[FileName])
    #: Objects of results that it was told of and has not released.
    results: set[ObjectName] = msgspec.field(default_factory=set[ObjectName])


class Programs:
    """All programs of one manager."""

    def __init__(self) -> None:
        self.known: dict[int, Program] = {}
        #: For the shell: objects to unpin and to discard in the store, library versions to remove from the core.
        self.unpin: list[ObjectName] = []
        self.discard: list[ObjectName] = []
        self.remove: list[LibraryId] = []
        #: For the core: declarations of files that are over, and whether replicas are to go.
        self.release: list[tuple[FileName, bool]] = []
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
        for call in message.calls:
            if not 0 < call.call <= _OWN:
                raise ProtocolError(f"program {program.name} submitted a call with the id {call.call}, which cannot be one")
            number = CallId(base | call.call)
            fresh.add(number)
            specs.append(CallSpec(number, library, call.function, call.payload, call.spans, options, call.inputs, call.keep, call.sandbox))
        if len(fresh) < len(specs) or not fresh.isdisjoint(program.calls):
            raise ProtocolError(f"program {program.name} submitted two calls under one id")
        program.calls |= fresh
        return specs

    def cancelled(self, program: Program, calls: Iterable[CallId]) -> list[CallId]:
        """The manager's ids of these calls of a program; those that it does not have are left out."""
        base = program.number << SHIFT
        ids = [CallId(base | (call & _OWN)) for call in calls]
        return [call for call in ids if call in program.calls]

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
                self.unpin.append(name)

    def files_released(self, program: Program, names: Iterable[FileName], prune: bool) -> None:
        """It needs these files no more."""
        for name in names:
            if program.files[name] > 0:
                program.files[name] -= 1
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
            program = self.known.get(number)
            if program is None or one.end.call not in program.calls:
                self._drop(one)
                continue
            program.calls.discard(one.end.call)
            if program.gone:
                # Nobody will ask for it. Here results could be kept for a program that comes back and asks by tag.
                self._drop(one)
                self._bury(program)
                continue
            if one.end.kept:
                program.files.update(FileName(span.name) for span in one.end.spans)
            else:
                program.results.update(span.name for span in one.end.spans)
            one.end.call = CallId(one.end.call & _OWN)
            theirs.setdefault(number, []).append(one)
        return own, {number: _in_frames(ends) for number, ends in theirs.items()}

    def _drop(self, done: CallDone) -> None:
        """Nobody wants this result."""
        if done.end.kept:
            self.release += ((FileName(span.name), True) for span in done.end.spans)
        else:
            self.discard += [span.name for span in done.end.spans]

    def left(self, program: Program) -> list[CallId]:
        """It is gone; the calls that are to be cancelled."""
        if program.gone:
            return []
        program.gone = True
        cancel = [] if program.keep else list(program.calls)
        if cancel or not program.calls:
            self._let_results_go(program)
        self._bury(program)
        return cancel

    def _bury(self, program: Program) -> None:
        """Let go what was its, if it is gone and so are its calls."""
        if program.calls or self.known.pop(program.number, None) is None:
            return
        self._let_results_go(program)  # calls that went on may have had them as inputs
        self.unpin += program.pins.elements()
        self.release += ((name, False) for name in program.files.elements())
        libraries, program.libraries = program.libraries, set()
        for library in libraries:
            self._remove_unused(library)

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
            assert all(count > 0 for count in program.pins.values())
            assert not program.gone or program.calls, f"program {program.name} is gone and has nothing, and is still known"


def _in_frames(done: list[CallDone]) -> list[CallsDone]:
    """Ends in messages that fit into frames."""
    messages: list[CallsDone] = []
    size = first = 0
    for index, one in enumerate(done):
        end = one.end
        size += len(end.payload) + len(end.stdout) + len(end.stderr) + 128 + 48 * len(end.spans)
        if end.detail is not None:
            size += 4 * len(end.detail.text)
        if size > _DONE_BYTES:
            messages.append(CallsDone(done[first : index + 1]))
            size, first = 0, index + 1
    if first < len(done):
        messages.append(CallsDone(done[first:] if first else done))
    return messages
