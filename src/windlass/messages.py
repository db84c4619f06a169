"""Every message that two parts of Windlass send each other, in one file (which is why it is a long one).

Theory of operation
-------------------
A *control connection* carries frames.  Its first frame in each direction is a handshake (`Hello`, answered by `Welcome` or
`Refused`), which is not numbered.  After it every frame is a `Frame`: a number, the number of the newest frame received from
the other side (the acknowledgement), and a list of messages.  `windlass.session` keeps unacknowledged frames and sends them again after a
cut, so each message arrives exactly once and in order for as long as both processes live.

Three roles speak to the manager: ``worker``, ``factory`` and ``client`` (the program, the command line).  Each role has one union of
messages that it may say and one that it may hear; a decoder made for a role accepts nothing else.  A client in the manager's process hands
its records over without encoding them: `CallSpec` and `CallDone` instead of `SubmitCalls` and `CallsDone`.

Arguments and results are opaque ``payload`` bytes here: they are pickled and unpickled at the ends (`windlass.pickling`), never on a
manager's or worker's event loop.  Buffers over `OUT_OF_BAND_BYTES` are *objects*: files with a content name that travel over
data connections (`GetObject`, `PutObject`), so that no payload delays a heartbeat.

All records are arrays on the wire (``array_like``): a field is added at the end, with a default, or the protocol number changes
(docs/versions.md).
Times are seconds; ``*_at`` is seconds since the epoch on the clock of the host that says it.  Memory and sizes are bytes.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, NewType, get_args

import msgspec

#: Rises when a peer that does not know of a change to the messages would misunderstand something: see docs/versions.md.
PROTOCOL: Final = 1
#: The oldest one whose peers a manager accepts.
OLDEST_PROTOCOL: Final = 1
#: A control frame may have this many bytes at most; larger data are objects.
MAX_FRAME_BYTES: Final = 1 << 20
#: A pickle buffer, or a pickled stream, of at least this many bytes travels as an object.
OUT_OF_BAND_BYTES: Final = 64 << 10
#: Slots of a library instance, at most: each is a process. Managers grant no more, and workers start no more.
SLOTS_MOST: Final = 1024

CallId = NewType("CallId", int)
#: The exit status of a worker whose node could not serve from the start (a full disk, say): EX_TEMPFAIL of sysexits.h.
CANNOT_SERVE: Final = 75

#: Names one version of a library: ``name@hash``; the hash covers all of its `LibrarySpec`.
LibraryId = NewType("LibraryId", str)
#: A library instance on a worker; unique in a manager's life.
InstanceId = NewType("InstanceId", int)
#: Content name of a pickled function (16 bytes of BLAKE2b).
FunctionId = NewType("FunctionId", bytes)
WorkerId = NewType("WorkerId", str)
#: Content name of an object: ``b3-`` and 32 hexadecimal digits of BLAKE3, or ``r-`` and a random name for results.
ObjectName = NewType("ObjectName", str)
#: The head of results' names, as objects and as files.
RESULT: Final = "r-"
#: A file by content (``b3-`` a file, ``t3-`` a tree), by what was declared (``u3-`` an unpacked archive, ``x3-`` a URL or shared path), or
#: ``r-``, a result that stays on workers; then 32 hexadecimal digits.
FileName = NewType("FileName", str)
PoolName = NewType("PoolName", str)
#: A pilot as its batch backend names it; for the manager an opaque word.
PilotId = NewType("PilotId", str)


class Record(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Base of records inside messages."""


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Base of messages; the class name is the tag."""


# ---------------------------------------------------------------- data


class ObjectRef(Record, frozen=True):
    """An object: its content name and its size in bytes."""

    name: ObjectName
    size: int


#: How long a replica stays in a worker's cache: as long as a call needs it; until the manager ends; until the worker does; or for the next
#: manager too. The disk's limit may end it sooner.
Level = Literal["call", "workflow", "worker", "forever"]
LEVELS: Final[tuple[str, ...]] = get_args(Level)


def longer(level: str, other: str) -> str:
    """The level at which replicas stay longer; of one that is none, the other."""
    return max(level, other, key=lambda each: LEVELS.index(each) if each in LEVELS else -1)


class FileRef(Record, frozen=True):
    """A file that a call needs."""

    name: FileName
    #: Bytes of content; -1: not known before it is there.
    size: int
    #: Last part of the path that the function sees.
    base: str
    #: How long a replica is kept: a `Level`.
    level: str = "workflow"

    @property
    def shown(self) -> str:
        """In the texts of errors: what the program calls it, and what caches do."""
        return f"{self.base} ({self.name})"


#: What a part of a result that stays on a worker is called in the cache.
KEPT_BASE: Final = "data"


def kept_file(part: ObjectRef) -> FileRef:
    """The file that a part of a result is when it stays on a worker."""
    return FileRef(FileName(part.name), part.size, KEPT_BASE)


class FileSource(Record, frozen=True):
    """Where one worker may have one file from: a peer, a URL, a shared path, or an archive that it unpacks."""

    #: Who serves it, the manager or a worker, by the name in its certificate; "": nobody.
    peer: str = ""
    #: ``host:port``, tried in turn; none for the manager, to whom there is a connection.
    addresses: tuple[str, ...] = ()
    #: Shown to a worker that serves: the manager's word that this one may read (`windlass.permits`).
    permit: bytes = b""
    url: str = ""
    path: str = ""
    archive: FileRef | None = None


class PoolEnvironment(Record, frozen=True):
    """The environment of a pilot of which only the boot is there: unpacked and packed, and where nodes see the archive."""

    unpacked: FileRef
    packed: FileRef
    path: str


class FileOrigin(Record, frozen=True):
    """Where a declared file comes from at first."""

    #: A file or tree that the manager can read; "": see the others.
    path: str = ""
    #: Of ``path``: modification time in nanoseconds and size, as declared.
    stamp: tuple[int, int] = (0, 0)
    #: The manifest of a tree.
    manifest: ObjectRef | None = None
    #: An object in the manager's store.
    object: ObjectRef | None = None
    url: str = ""
    #: A path that workers can read.
    shared: str = ""
    archive: FileRef | None = None


class Part(NamedTuple):
    """A pickled value, as `windlass.pickling` makes it: payload (empty when the stream itself is the first of ``spans``) and spans."""

    payload: bytes
    spans: tuple[ObjectRef, ...] = ()


class Resources(Record, frozen=True):
    """What a call, a slot or a worker has or needs. ``cores`` may be a fraction; ``memory`` is in bytes."""

    cores: float = 0.0
    memory: int = 0
    gpus: int = 0


# ---------------------------------------------------------------- libraries


class ImportSpec(Record, frozen=True):
    """A module to hoist. An explicit one that fails fails the library; an automatic one is left to the call."""

    module: str
    explicit: bool = False


class FunctionDef(Record, frozen=True):
    """A function by content: its cloudpickle bytes, inline or as an object (then ``blob`` is empty)."""

    id: FunctionId
    #: The name that people read in errors and in the status.
    name: str
    blob: bytes = b""
    object: ObjectRef | None = None
    #: Objects that must be in the worker's cache and on the instance's ``sys.path`` first: snapshots of local source trees.
    code: tuple[ObjectRef, ...] = ()


class LibrarySpec(Record, frozen=True):
    """One version of a library, all that a worker needs to start an instance of it."""

    id: LibraryId
    name: str
    #: (major, minor) of the program's Python; an instance of another one is refused.
    python: tuple[int, int]
    functions: tuple[FunctionDef, ...] = ()
    imports: tuple[ImportSpec, ...] = ()
    #: cloudpickle bytes of ``(context_function, args, kwargs)``, or empty.
    context: bytes = b""
    #: The context is computed once in the zygote, before the forks, instead of once per slot.
    share_context: bool = False
    mode: str = "direct"  # or "fork": a fresh fork of the warm slot for each call
    start: str = "fork"  # or "spawn": each slot is a fresh interpreter that imports for itself
    #: Slots per worker; 0: as many as the worker has room for by `per_slot`.
    slots: int = 0
    #: What one slot needs. cores 0 means 1 core; memory 0 means an equal share.
    per_slot: Resources = Resources()
    #: Variables set in the zygote's environment before its exec.
    env: tuple[tuple[str, str], ...] = ()
    #: Limit for BLAS and OpenMP threads in a slot; 0: the slot's whole cores (at least 1).
    threads: int = 0
    #: Source snapshots (objects, zip archives) put first on ``sys.path``, and further ``sys.path`` entries of the program.
    code: tuple[ObjectRef, ...] = ()
    paths: tuple[str, ...] = ()
    #: Seconds that imports and context may take before the library counts as one that cannot start.
    start_timeout: float = 300.0
    #: A slot is replaced after so many calls; 0: never.
    max_calls: int = 0
    #: An unpacked environment whose Python the instance runs; None: that of the worker.
    environment: FileRef | None = None
    #: Calls of async functions that one slot runs at the same time.
    concurrency: int = 1


# ---------------------------------------------------------------- calls


class CallOptions(Record, frozen=True):
    """How a call is to be run; most calls of a program share one of these."""

    #: Seconds an attempt may run, enforced at the worker; 0: no limit.
    timeout: float = 0.0
    #: Further attempts after a slot died in the call, or it raised one of ``retry_on``.
    retries: int = 0
    #: ``module.qualname`` of the exceptions worth a retry; matched against the exception's whole MRO.
    retry_on: tuple[str, ...] = ()
    #: Larger first.
    priority: float = 0.0
    #: What the call needs; more than a slot's share occupies several slots. Zeros: one slot.
    needs: Resources = Resources()
    #: On `OUT_OF_MEMORY` try again with a larger share (``memory="auto"``).
    grow_memory: bool = False
    #: Attempts that may be lost with their worker before the call ends, with all of them told.
    max_losses: int = 5
    #: Seconds the caller expects the call to take; 0: learn it.
    expected_time: float = 0.0
    #: A large result stays on the worker that made it.
    keep: bool = False


class Sandbox(Record, frozen=True):
    """A directory of a call's own, in which it runs."""

    #: (path there, file, base in the cache); without a file the third is a path that is read in place.
    inputs: tuple[tuple[str, FileName, str], ...] = ()
    #: (path there, the file that it becomes).
    outputs: tuple[tuple[str, FileName], ...] = ()
    #: The file that becomes of the path which the function returns; "": what it returns is a result.
    returned: FileName = FileName("")
    #: Outputs that are not there when it has returned are no failure: who needs them ends without.
    lenient: bool = False


class CallSpec(msgspec.Struct, array_like=True, gc=False):
    """A call as the manager's core gets it: from the client in its process as it is, from others as a `CallSent`."""

    call: CallId
    library: LibraryId
    function: FunctionId
    #: Pickled ``(args, kwargs)``; empty when the stream itself is the first of ``spans``.
    payload: bytes
    spans: tuple[ObjectRef, ...] = ()
    options: CallOptions = CallOptions()
    #: Files that its arguments name, and results among its spans that are on workers.
    inputs: tuple[FileRef, ...] = ()
    #: Names of what it keeps on its worker begin with this (24 hexadecimal digits); "": nothing stays.
    keep: str = ""
    sandbox: Sandbox | None = None
    #: By which its program, or another one, finds it again (`FindCalls`).
    tag: str = ""
    #: By which the next life of its program knows it (`windlass.manager.memory`); empty: by nothing.
    key: bytes = b""
    #: The W3C's ``traceparent`` of its span; "": it is not traced.
    trace: str = ""


class CallRun(msgspec.Struct, array_like=True, gc=False):
    """A call as the manager hands it to a worker, and the worker (in the same bytes) to a slot."""

    call: CallId
    #: Grows with each time it is sent, whether it begins or not; an answer to an older attempt is dropped.
    attempt: int
    instance: InstanceId
    function: FunctionId
    payload: bytes
    spans: tuple[ObjectRef, ...] = ()
    timeout: float = 0.0
    #: How many of the instance's slots the call occupies.
    weight: int = 1
    #: It is not to start with less time left: what it is expected to take, or ran when a pilot's end cut it off. 0: any time.
    least_seconds: float = 0.0
    #: Files that must be in the worker's cache first. Those of ``spans`` that are among them are read from there.
    inputs: tuple[FileRef, ...] = ()
    #: The parts of a large result stay here, under names that begin with this; "": they go to the manager.
    keep: str = ""
    sandbox: Sandbox | None = None
    #: As in its `CallSpec`.
    key: bytes = b""
    trace: str = ""
    #: For people, who count only those attempts that may have begun: this one's number, from 1. 0: as ``attempt``.
    turn: int = 0


#: `CallEnd.outcome`
RETURNED: Final = 0  # payload: the pickled result
RAISED: Final = 1  # payload: the pickled exception (`windlass.pickling`); detail.types has its MRO
DIED: Final = 2  # the slot died in the call; detail says how
TIMED_OUT: Final = 3  # ran longer than its timeout; the slot was replaced
OUT_OF_MEMORY: Final = 4  # ended because of memory; detail has peak, share and limit
CANCELLED: Final = 5  # cancelled while it ran or before it started
BAD_CALL: Final = 6  # could not run or answer at all: arguments or result that cannot be (un)pickled; detail.text
NO_FILE: Final = 7  # a file that it needs could not be had, or (said by a slot) is not in the cache any more; detail.text


class EndDetail(Record, frozen=True):
    """Why a call ended otherwise than by returning."""

    #: ``module.qualname`` of the exception's classes, most derived first.
    types: tuple[str, ...] = ()
    text: str = ""
    signal: int = 0
    exit_status: int = -1
    peak_memory: int = 0
    share: int = 0
    limit: int = 0
    #: What could not be loaded or sent back cannot be pickled: of `BAD_CALL`.
    unpicklable: bool = False


class CallEnd(msgspec.Struct, array_like=True, gc=False):
    """How an attempt ended."""

    call: CallId
    attempt: int
    outcome: int
    #: Pickled result or exception; empty when the stream itself is the first of ``spans``.
    payload: bytes = b""
    spans: tuple[ObjectRef, ...] = ()
    #: What the call wrote, bounded (`windlass.worker.capture`).
    stdout: bytes = b""
    stderr: bytes = b""
    #: Worker's clock. `started_at` is when the slot took the call, `ready_at` when its function and arguments were there; what lies between
    #: them is measured by a clock that nobody sets.
    started_at: float = 0.0
    ready_at: float = 0.0
    ended_at: float = 0.0
    detail: EndDetail | None = None
    #: ``spans`` have stayed in the worker's cache.
    kept: bool = False
    #: Files that it has left in its directory, which have stayed too.
    outputs: tuple[FileRef, ...] = ()
    #: As in its `CallRun`.
    key: bytes = b""

    def made(self) -> list[FileRef]:
        """All that has stayed on the worker."""
        return [*(map(kept_file, self.spans) if self.kept else ()), *self.outputs]

    @property
    def about_bytes(self) -> int:
        """About how many bytes a message has for it."""
        size = 128 + len(self.payload) + len(self.stdout) + len(self.stderr) + 48 * len(self.spans)
        if self.outputs:
            size += sum(80 + len(ref.base) for ref in self.outputs)
        return size if self.detail is None else size + 4 * len(self.detail.text)


# ---------------------------------------------------------------- handshake


class WorkerInfo(Record, frozen=True):
    """What a worker is and has."""

    host: str
    pid: int
    resources: Resources
    gpu_ids: tuple[str, ...] = ()
    pool: PoolName = PoolName("")
    pilot: PilotId = PilotId("")
    #: Seconds until the pilot's hard end; 0: unlimited.
    seconds_left: float = 0.0
    #: False: stop-accepting has begun.
    accepting: bool = True
    scratch: str = ""
    #: What its libraries run in; None: what it runs in itself.
    environment: PoolEnvironment | None = None
    #: Cores of calls that it runs, and that will run on should the manager be a later life of the one that sent them; and their GPUs.
    busy: float = 0.0
    busy_gpus: int = 0


class HeldCall(Record, frozen=True):
    """One attempt of a call that a worker holds, or held."""

    call: CallId
    attempt: int


class Hello(Message, frozen=True):
    """Anyone → manager: the first frame of a control connection (role ``worker``, ``factory``, ``client``) or a data connection."""

    role: str
    protocol: int
    version: str
    python: tuple[int, int]
    #: Worker id, factory name or client name; must match the certificate where that names one.
    peer: str
    #: Session to take up again; empty: a new one.
    session: str = ""
    #: Number of the newest frame received in that session.
    received: int = 0
    #: "control" or "data".
    purpose: str = "control"
    worker: WorkerInfo | None = None


class Welcome(Message, frozen=True):
    """Manager → anyone: the connection is accepted."""

    session: str
    received: int
    manager: str
    version: str
    #: Send at least one frame per so many seconds; a side that is silent for ``silence`` seconds counts as cut off.
    heartbeat: float = 5.0
    silence: float = 30.0
    #: A worker leaves when it has not reached its manager for so long.
    manager_timeout: float = 300.0
    #: Folder of the manager's objects and the content of ``.token`` in it: a worker that can read that token shares the host
    #: and takes objects by path.
    store: str = ""
    store_token: str = ""
    #: Calls with a key go on when this manager is gone: its next life will ask for them.
    adopts: bool = False
    #: A program may say what it has read (`EndsRead`).
    keeps_unread: bool = False


class Refused(Message, frozen=True):
    """Manager → anyone: the connection is not accepted; final unless ``retry``."""

    text: str
    retry: bool = False


# ---------------------------------------------------------------- manager → worker


class StartLibrary(Message, frozen=True):
    """Manager → worker: start an instance with so many slots (0: zygote only)."""

    instance: InstanceId
    spec: LibrarySpec
    slots: int
    #: GPU ids for the slots, ``per_slot.gpus`` each. So many it may have; which ones the worker knows better, as busy slots keep theirs.
    gpu_ids: tuple[str, ...] = ()


class SetSlots(Message, frozen=True):
    """Manager → worker: give an instance so many slots; surplus ones leave when idle."""

    instance: InstanceId
    slots: int
    gpu_ids: tuple[str, ...] = ()


class StopLibrary(Message, frozen=True):
    """Manager → worker: end an instance; it has no calls."""

    instance: InstanceId


class AddFunctions(Message, frozen=True):
    """Manager → worker: functions that calls will name; sent once per worker, before the first such call."""

    functions: tuple[FunctionDef, ...]


class ForgetFunctions(Message, frozen=True):
    """Manager → worker: functions that will not be named again without being added again."""

    functions: tuple[FunctionId, ...]


class RunCalls(Message, frozen=True):
    """Manager → worker: run these, in this order."""

    calls: list[CallRun]


class RecallCalls(Message, frozen=True):
    """Manager → worker: give back up to so many calls of an instance that have not started, newest first."""

    instance: InstanceId
    count: int


class CancelCalls(Message, frozen=True):
    """Manager → worker: end these attempts, started or not; each is answered by a `CallEnd`."""

    calls: tuple[HeldCall, ...]


class EndOrphans(Message, frozen=True):
    """Manager → worker, to one that said `OrphansHeld.ends`: end these, by their keys; each that runs is answered by `OrphansEnded`."""

    keys: list[bytes]


class Drain(Message, frozen=True):
    """Manager → worker: accept nothing more, give back what has not started, finish what runs, then leave."""

    reason: str


class Leave(Message, frozen=True):
    """Manager → worker, factory or client: the run is over; end everything and exit."""

    reason: str


class FetchFile(Message, frozen=True):
    """Manager → worker: have this file from there, whether you have asked for it or not. Answered by `FileHere` or `FileFailed`."""

    ref: FileRef
    source: FileSource
    #: What the content must have beside the name, where that is known; see `FileHere`.
    digest: str = ""
    #: A small file is here already.
    data: bytes | None = None


class FileLost(Message, frozen=True):
    """Manager → worker: you wanted this file, and it cannot be had: what needs it fails."""

    name: FileName
    text: str
    #: Not now, or not here: it is being made again, its source does not answer, or other workers have it. Give back what needs it.
    later: bool = False


class PushFile(Message, frozen=True):
    """Manager → worker: put this result into my store. Answered by `FilePushed`."""

    name: FileName


class DropFiles(Message, frozen=True):
    """Manager → worker: these are not needed any more; with ``damaged`` only those go whose content is not what their names say."""

    names: tuple[FileName, ...]
    damaged: bool = False


class CertificateIssued(Message, frozen=True):
    """Manager → worker: the certificate asked for, PEM."""

    certificate: bytes


# ---------------------------------------------------------------- worker → manager


class HoistedImport(Record, frozen=True):
    """A module that the zygote loaded, the seconds that took, and an error if it failed."""

    module: str
    seconds: float
    error: str = ""


class LibraryReady(Message, frozen=True):
    """Worker → manager: an instance serves; once more when there are other notes."""

    instance: InstanceId
    pid: int
    imports: tuple[HoistedImport, ...] = ()
    context_seconds: float = 0.0
    #: Why it does not run as asked ("spawn instead of fork: 3 threads after import of x"), one per line.
    notes: tuple[str, ...] = ()


class LibraryFailed(Message, frozen=True):
    """Worker → manager: an instance could not start, or its zygote died."""

    instance: InstanceId
    #: "import", "context", "function", "python", "crash", "timeout".
    kind: str
    text: str
    #: False when it had served before.
    at_start: bool = True


class LibraryStopped(Message, frozen=True):
    """Worker → manager: an instance has ended as asked."""

    instance: InstanceId


class CallsEnded(Message, frozen=True):
    """Worker → manager: calls have ended, well or badly."""

    ends: list[CallEnd]


class CallsReturned(Message, frozen=True):
    """Worker → manager: calls that did not start and will not: recalled, drained, or their instance is gone.

    "warned": these had started, had registered for the end of their pilot, and were ended by it. "neighbour": these had started in a slot
    that runs many calls at once, and that had to be killed for one of the others.
    """

    calls: tuple[HeldCall, ...]
    #: "recalled", "draining", "late", "warned", "neighbour", "instance", "files", "room", "unknown".
    reason: str


class WorkerDraining(Message, frozen=True):
    """Worker → manager: I accept nothing more (walltime, signal, asked to, trouble)."""

    reason: str
    seconds_left: float = 0.0
    #: Nobody has asked for it and no end is near: the node cannot serve, as `reason` says.
    trouble: bool = False


class WorkerReport(Message, frozen=True):
    """Worker → manager, every few seconds: how things stand."""

    memory_used: int
    memory_limit: int
    #: Seconds to the hard end; 0: unlimited.
    seconds_left: float
    running: int
    queued: int
    cache_bytes: int = 0
    #: Cores of calls of an earlier life of the manager, and their GPUs.
    busy: float = 0.0
    busy_gpus: int = 0


class OrphansHeld(Message, frozen=True):
    """Worker → manager, first of all: calls with these keys, of an earlier life of yours, run here; `OrphansEnded` tells of their ends."""

    keys: list[bytes]
    #: I understand `EndOrphans`.
    ends: bool = False


class OrphansEnded(Message, frozen=True):
    """Worker → manager: calls of an earlier life of yours have ended; each end has its key, and a call's number that means nothing now."""

    ends: list[CallEnd]


class Serving(Message, frozen=True):
    """Worker → manager: peers reach my files at these addresses (``host:port``)."""

    addresses: tuple[str, ...]


class WantFiles(Message, frozen=True):
    """Worker → manager: from where may I have these? Answered by a `FetchFile` or `FileLost` for each, when its turn has come."""

    names: tuple[FileName, ...]


class FileHere(Message, frozen=True):
    """Worker → manager: this file is in my cache."""

    name: FileName
    size: int
    #: 32 hexadecimal digits: BLAKE3 of a file's bytes, or of a tree's manifest; "": not looked at.
    digest: str = ""


class FileFailed(Message, frozen=True):
    """Worker → manager: this file could not be had from there."""

    name: FileName
    source: FileSource
    #: "gone": it is not there, "failed": it could not be reached, "damaged": what came is not what the name says, "full": no room here.
    kind: str
    text: str


class FilePushed(Message, frozen=True):
    """Worker → manager: answer to `PushFile`; with ``text`` it could not be done."""

    name: FileName
    text: str = ""


class FilesGone(Message, frozen=True):
    """Worker → manager: these are in my cache no more."""

    names: tuple[FileName, ...]


class Goodbye(Message, frozen=True):
    """Anyone → manager: an orderly end of the session."""

    reason: str
    #: Worker: it holds no call, so that those on their way to it have not begun.
    idle: bool = False


class CertificateRequest(Message, frozen=True):
    """Worker → manager: sign my key (PEM request); the name is my worker id."""

    request: bytes


# ---------------------------------------------------------------- data connections


class GetObject(Message, frozen=True):
    """Worker or client → manager, or worker → peer: send me this object. Answered by `ObjectHead` and the bytes, or `ObjectMissing`."""

    name: ObjectName


class PutObject(Message, frozen=True):
    """Worker or client → manager: here are ``size`` bytes of this object; they follow the frame. With ``path``, take the file there."""

    name: ObjectName
    size: int
    path: str = ""
    #: A client's number of this use of the object, which it releases once: the same when it asks again as an answer was lost. 0: no number.
    use: int = 0


class ObjectHead(Message, frozen=True):
    """Answer to `GetObject`: ``size`` raw bytes follow this frame."""

    name: ObjectName
    size: int


class ObjectStored(Message, frozen=True):
    """Answer to `PutObject`."""

    name: ObjectName


class ObjectMissing(Message, frozen=True):
    """Answer to `GetObject`, `PutObject` or `GetFile`: not here, or not allowed."""

    name: ObjectName
    text: str = ""
    #: Who answers has no room for it, or is itself in trouble (no descriptors, a file server that is away): later that may be otherwise.
    full: bool = False


class GetFile(Message, frozen=True):
    """Worker → manager or peer, on a connection for files: send me this file from ``offset`` of its stream."""

    name: FileName
    offset: int = 0
    permit: bytes = b""


class FileHead(Message, frozen=True):
    """Answer to `GetFile`: the raw bytes of the stream from ``offset`` to its end follow this frame."""

    name: FileName
    #: Of the whole stream.
    size: int
    offset: int = 0
    #: The stream is a tree's: length of the manifest, manifest, contents.
    tree: bool = False


# ---------------------------------------------------------------- factory


class Shape(Record, frozen=True):
    """Calls that need the same: how many wait and run, and the expected seconds of work in them (0: unknown)."""

    needs: Resources
    waiting: int
    running: int
    seconds: float = 0.0
    #: Expected seconds of the longest such call; 0: unknown.
    longest: float = 0.0
    #: Pools that calls of this shape fit; empty: any.
    pools: tuple[PoolName, ...] = ()
    #: Walltime in seconds that a pilot for them must have, as far as that is known; 0: any will do.
    least: float = 0.0
    #: Further ones that cannot run just now, for want of a file: pilots are kept for them, and none are started.
    away: int = 0


class PilotSeen(Record, frozen=True):
    """A pilot as the manager sees it."""

    pool: PoolName
    pilot: PilotId
    connected: bool
    running: int
    idle_seconds: float
    draining: bool = False
    resources: Resources = Resources()
    #: Seconds that pilots of its pool may live; 0: no limit, or unknown.
    walltime: float = 0.0


class Demand(Message, frozen=True):
    """Manager → factory, when it changes: what could be used now."""

    shapes: tuple[Shape, ...]
    pilots: tuple[PilotSeen, ...] = ()
    #: Hosts that are not wanted.
    avoid: tuple[str, ...] = ()


class ReleasePilots(Message, frozen=True):
    """Factory → manager: drain these; I will end them."""

    pilots: tuple[PilotId, ...]
    pool: PoolName
    reason: str = "not needed"


#: In `PoolOffer.listen`: the address that the manager's host name resolves to.
HOST: Final = "the host's"


class PoolOffer(Record, frozen=True):
    """What one pilot of a pool can give."""

    pool: PoolName
    resources: Resources
    #: Seconds a pilot may live; 0: unlimited.
    walltime: float = 0.0
    #: Not empty: the pool is paused, and why.
    paused: str = ""
    backend: str = ""
    #: Where the manager must listen for its pilots: an interface, a network, an address, `HOST`; "": loopback will do.
    listen: str = ""
    #: It is paused and has no pilot that could still come: it is as if it were not there.
    spent: bool = False
    #: How many workers it may have at a time; 0: its factory does not say.
    most: int = 0
    #: Its memory is what pilots have turned out to have; the pool states none, or more. Memory 0: not stated, and no pilot was seen yet.
    found: bool = False


class PilotEnded(Record, frozen=True):
    """A pilot that the batch system says has ended."""

    pilot: PilotId
    reason: str
    #: Died before it served: the tail of its own stderr, a hold reason, a reject text.
    failed: bool = False


class PilotLine(Record, frozen=True):
    """A pilot as its factory knows it, for people to read. Times: seconds since the epoch, by the factory's clock."""

    pool: PoolName
    pilot: PilotId
    #: The batch system's name for it.
    job: str
    #: A `windlass.factory.pilots.Phase`.
    phase: str
    since: float
    made_at: float
    node: str = ""
    #: The batch system's own words on it; of one that has ended: why.
    reason: str = ""
    #: Where its output is, on the factory's machine; "": nobody can say.
    log: str = ""
    #: It died before it served.
    failed: bool = False
    #: Of one that has ended: seconds that it ran, and where its end was not in order the last lines of its own output.
    ran: float = 0.0
    words: str = ""
    #: Earlier starts of the same job.
    restart: int = 0
    #: The submission that it came from.
    ticket: str = ""
    #: Of one that has ended: a `windlass.factory.backend.Cause`, and the exit status, where it is known.
    cause: str = ""
    exit_status: int | None = None


class PoolReport(Message, frozen=True):
    """Factory → manager: my pools, what became of pilots, counts of pilots by state."""

    offers: tuple[PoolOffer, ...]
    ended: tuple[PilotEnded, ...] = ()
    #: (pool, state, number)
    counts: tuple[tuple[PoolName, str, int], ...] = ()
    #: (pool, text): the newest failure.
    failures: tuple[tuple[PoolName, str], ...] = ()
    #: (kind of command, number) sent to the batch system so far.
    commands: tuple[tuple[str, int], ...] = ()
    #: Pilots of which something has changed since the last report.
    pilots: tuple[PilotLine, ...] = ()
    #: When this was said, in seconds since the epoch by the factory's clock; 0: it does not say.
    at: float = 0.0


class ResumePool(Message, frozen=True):
    """Client → manager → factory: what paused this pool ("": any) is mended; submit again."""

    pool: PoolName


# ---------------------------------------------------------------- client


class CancelSubmitted(Message, frozen=True):
    """Client → manager: cancel these calls, whatever their state."""

    calls: tuple[CallId, ...]


class BlockHost(Message, frozen=True):
    """Client → manager: run nothing more on this host for so many seconds (0: for ever); or (not ``blocked``) do again, "" for all."""

    host: str
    seconds: float = 0.0
    blocked: bool = True


class InstallLibrary(Message, frozen=True):
    """Client → manager: this version of a library is there to be called."""

    spec: LibrarySpec


class RemoveLibrary(Message, frozen=True):
    """Client → manager: no more calls of this version will come from here; end its instances when its calls have ended."""

    library: LibraryId


class DefineFunctions(Message, frozen=True):
    """Client → manager: functions that calls will name."""

    functions: tuple[FunctionDef, ...]


class CallSent(msgspec.Struct, array_like=True, gc=False):
    """A call on its way from a client in another process: a `CallSpec` without what it shares with its neighbours."""

    #: The client's own number; the manager has another one for it.
    call: CallId
    function: FunctionId
    payload: bytes
    spans: tuple[ObjectRef, ...] = ()
    inputs: tuple[FileRef, ...] = ()
    keep: str = ""
    sandbox: Sandbox | None = None
    tag: str = ""
    trace: str = ""
    #: By this a later life of the client, which has the same journal, would submit the same call; of the end, too.
    key: bytes = b""


class SubmitCalls(Message, frozen=True):
    """Client → manager, over a connection: queue these, in this order. Objects that they name were put before this is said."""

    library: LibraryId
    options: CallOptions
    calls: list[CallSent]


class ReleaseObjects(Message, frozen=True):
    """Client → manager, over a connection: I need these no more: objects that I put, each as often as it stands here, and results."""

    names: tuple[ObjectName, ...]


class DeclareFile(Message, frozen=True):
    """Client → manager: calls will name this file."""

    ref: FileRef
    origin: FileOrigin


class DeclareMade(Message, frozen=True):
    """Client → manager: calls will name this file, which ``spec`` makes when it is first needed."""

    ref: FileRef
    spec: CallSpec


class ReleaseFiles(Message, frozen=True):
    """Client → manager: I need these no more, each as often as it stands here. With ``prune`` replicas of any level go too."""

    names: tuple[FileName, ...]
    prune: bool = False


class BringFiles(Message, frozen=True):
    """Client → manager: have these results, which are on workers, in your store. Answered by a `FileBrought` for each."""

    names: tuple[FileName, ...]


class FileBrought(Message, frozen=True):
    """Manager → client: answer to `BringFiles`; with ``text`` it cannot be had."""

    name: FileName
    text: str = ""


class FilesForgotten(Message, frozen=True):
    """Manager → client: these results will not be made again, so what their making needs may go."""

    names: tuple[FileName, ...]


class KeepCalls(Message, frozen=True):
    """Client → manager, over a connection, first of all: I am a program with calls to come. With ``keep`` they go on when I am gone."""

    keep: bool
    #: I am about to go: tell me no more ends, keep those of calls with a tag for who finds them.
    leaving: bool = False
    #: I have this journal, so whoever had it is gone: what that left here, and I submit by the same key, is mine.
    journal: str = ""
    #: I shall say which ends I have read (`EndsRead`): keep those of calls with a tag until then, for who finds them if I am killed.
    tells_read: bool = False


class EndsRead(Message, frozen=True):
    """Client → manager, over a connection: my user has these ends, so nobody else is to find them."""

    calls: tuple[CallId, ...]


class FindCalls(Message, frozen=True):
    """Client → manager, over a connection: the calls with this tag of programs that have left them here are mine from now on."""

    tag: str


class CallsFound(Message, frozen=True):
    """Manager → client, over a connection: the answer, in the order in which they were submitted; `CallsDone` will tell of their ends."""

    #: The client's numbers of them from now on, and when they were queued (manager's clock).
    calls: list[tuple[CallId, float]]
    #: Another message with more of them follows.
    more: bool = False
    #: By what they were submitted, for one that has the journal of who did.
    keys: tuple[bytes, ...] = ()
    #: Programs that are not heard of and may be gone: each one's name, how many such calls it would leave, and in how many seconds at most
    #: it is given up.
    awaited: tuple[tuple[str, int, float], ...] = ()


class EndManager(Message, frozen=True):
    """Client → manager, over a connection: end. A manager that is part of a program does not."""

    reason: str


class CallAttempt(Record, frozen=True):
    """One try of a call, for people to read."""

    #: Counted from 1, those left out that never began.
    attempt: int
    worker: WorkerId
    host: str
    outcome: str
    seconds: float = 0.0


class CallDone(msgspec.Struct, array_like=True, gc=False):
    """Manager → client: a call has its one end."""

    #: `end.outcome` as above, or one of the manager's own: see `windlass.manager.calls`.
    end: CallEnd
    #: Manager's clock: when it was queued and sent, and when its end came in.
    queued_at: float = 0.0
    sent_at: float = 0.0
    returned_at: float = 0.0
    attempts: tuple[CallAttempt, ...] = ()
    #: The call's.
    tag: str = ""

    @property
    def turns(self) -> int:
        """Attempts that may have begun: those that are told of, and the one that ended well or was cancelled while it ran."""
        return len(self.attempts) + (self.end.outcome == RETURNED or (self.end.outcome == CANCELLED and self.end.started_at > 0))


class CallsDone(Message, frozen=True):
    """Manager → client, over a connection: these calls have ended. Back from one that leaves: I have not read these, they are for who finds
    them."""

    done: list[CallDone]


class Means(Message, frozen=True):
    """Manager → client, over a connection, when it comes, and when that is something else: what there is to run calls with, about."""

    #: Calls that all instances would hold when full, to a fifth.
    capacity: int
    #: Changes when the rest does.
    version: int
    offers: tuple[PoolOffer, ...] = ()
    #: Of workers, each kind once; their memory a little more than it is, where there are many kinds.
    workers: tuple[Resources, ...] = ()


class GetStatus(Message, frozen=True):
    """Client → manager: how do things stand?"""

    #: Pilots and workers of this pilot, job, worker or host are told before others, where one message does not hold all.
    wanted: str = ""


class GetView(Message, frozen=True):
    """Client → manager: how do things stand, for a dashboard? Answered by `View`s. From the first one on the manager records its run."""

    #: What was told up to here is known, seconds after the recording began, and this version of the time line; 0: nothing.
    since: float = 0.0
    version: int = 0
    #: Without what changes seldom and may be long: pilots and files.
    brief: bool = False


class View(Message, frozen=True):
    """Manager → client: a piece of the answer to `GetView`; ``json`` is a part of the object of docs/dashboard.md."""

    json: bytes
    #: Another piece follows.
    more: bool = False


class Status(Message, frozen=True):
    """Manager → client: answer to `GetStatus`; ``json`` is the documented status object."""

    json: bytes


class ListCalls(Message, frozen=True):
    """Client → manager: which calls are there? Of each state that is meant so many at most; empty words mean any."""

    #: Some of "waiting", "sent", "running", "failed"; none: all of these.
    states: tuple[str, ...] = ()
    library: str = ""
    tag: str = ""
    host: str = ""
    most: int = 20


class CallList(Message, frozen=True):
    """Manager → client: answer to `ListCalls`; ``json`` is the object of docs/status.md."""

    json: bytes


class Frame(msgspec.Struct, frozen=True, array_like=True):
    """What stands in a numbered frame; ``messages`` is decoded by the reader's role."""

    number: int
    received: int
    messages: msgspec.Raw


ToWorker = (
    StartLibrary
    | SetSlots
    | StopLibrary
    | AddFunctions
    | ForgetFunctions
    | RunCalls
    | RecallCalls
    | CancelCalls
    | EndOrphans
    | Drain
    | Leave
    | CertificateIssued
    | FetchFile
    | FileLost
    | PushFile
    | DropFiles
)
FromWorker = (
    LibraryReady
    | LibraryFailed
    | LibraryStopped
    | CallsEnded
    | CallsReturned
    | WorkerDraining
    | WorkerReport
    | OrphansHeld
    | OrphansEnded
    | Goodbye
    | CertificateRequest
    | Serving
    | WantFiles
    | FileHere
    | FileFailed
    | FilePushed
    | FilesGone
)
ToFactory = Demand | ResumePool | Leave
FromFactory = PoolReport | ReleasePilots | Goodbye
ToClient = Status | CallList | View | CallsDone | CallsFound | Means | FileBrought | FilesForgotten | Leave
FromClient = (
    SubmitCalls
    | CancelSubmitted
    | BlockHost
    | InstallLibrary
    | RemoveLibrary
    | DefineFunctions
    | ReleaseObjects
    | DeclareFile
    | DeclareMade
    | ReleaseFiles
    | BringFiles
    | KeepCalls
    | EndsRead
    | CallsDone
    | FindCalls
    | EndManager
    | GetStatus
    | ListCalls
    | GetView
    | ResumePool
    | Goodbye
)
FromData = GetObject | PutObject
ToData = ObjectHead | ObjectStored | ObjectMissing
FromFileReader = GetFile | GetObject | PutObject
ToFileReader = FileHead | ObjectMissing
