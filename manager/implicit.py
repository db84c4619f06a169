"""The implicit library of a program: functions that are submitted without one.

Theory of operation
-------------------
It has no functions of its own; functions are added to it by content.  When one needs an import that is not hoisted yet, a new version with
more imports follows the old one, so busy slots finish undisturbed.  Versions are named by what they hoist, so programs that need the same
share warm instances.  Async functions of which slots are to run many at once have one of their own, for each such number, and so have calls
that want GPUs: a slot has as many as one of its calls.

A version has one text of each local module.  When one was edited, which is looked for once a second, the next call is for a version with
the new text; when the edit is undone, for the old version again.

A loop calls one function again and again, so what was called last stands ready: whoever submits looks there first.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from windlass import snapshots
from windlass.errors import UsageError
from windlass.manager.call import IMPLICIT, Target
from windlass.manager.library import Library
from windlass.messages import (
    DefineFunctions,
    FunctionDef,
    FunctionId,
    ImportSpec,
    InstallLibrary,
    LibraryId,
    LibrarySpec,
    ObjectRef,
    RemoveLibrary,
)

if TYPE_CHECKING:
    from windlass.functions import Defined
    from windlass.manager.client import Client

log = logging.getLogger("windlass.manager")


class SlotShape(NamedTuple):
    """What the slots of one of the implicit libraries are like."""

    #: How many calls a slot runs at once.
    concurrency: int
    #: GPUs of a slot.
    gpus: int


class Implicit:
    """A part of `windlass.manager.door.Door`."""

    _client: Client
    #: Functions that are remembered as defined; fewer than the core remembers.
    _defined_most = 5_000

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.RLock()
        self._implicit: dict[SlotShape, LibrarySpec] = {}
        self._implicit_imports: dict[str, ImportSpec] = {}
        #: The newest text of each local module that functions needed.
        self._implicit_code: dict[str, ObjectRef] = {}
        #: When to look whether it still is, on the monotonic clock, and the edits that were known at the last look.
        self._look_at = 0.0
        self._edits = 0
        #: By function, whether equal calls of it are one, and the library.
        self._defined: OrderedDict[tuple[FunctionId, bool, SlotShape], Target] = OrderedDict()
        #: What was called last, and how: no other function has been defined since, nor another version.
        self._latest: tuple[Defined, bool, int, int, LibrarySpec, Target] | None = None

    @abstractmethod
    def _put_forever(self, data: Any) -> ObjectRef:
        """Keep functions and code for as long as this program may need them."""

    @abstractmethod
    def _remembering(self, memoize: bool) -> bytes:
        """How calls of a function are remembered; empty: not at all."""

    def _look_for_edits(self) -> None:
        """See that the next version has the modules' texts of now: arguments will name these, also of functions that do not."""
        if snapshots.edits == self._edits and time.monotonic() < self._look_at:
            return
        while True:
            edits = snapshots.edits
            refs: tuple[ObjectRef, ...] = ()
            with suppress(UsageError):  # one has become too large: told when a function or an argument needs it
                # Without the lock: where source is just being saved it takes a while.
                refs = snapshots.snapshots_of(tuple(self._implicit_code), self._put_forever)
            with self._lock:
                if edits != snapshots.edits:
                    continue  # by this look, or by that of another thread, which has the newer text already
                for ref in refs:
                    self._have_code(ref, new=False)
                self._edits, self._look_at = edits, snapshots.looks_again_at(self._implicit_code)
                return

    def _have_code(self, ref: ObjectRef, *, new: bool) -> None:
        """This is the text of a module from now on. ``new``: also of a module that no function has needed yet."""
        module = snapshots.module_of(ref)
        known = self._implicit_code.get(module)
        if known != ref and (known is not None or new):
            self._implicit_code[module] = ref
            self._latest = None

    def _implicit_target(self, fn: Callable[..., Any], defined: Defined, memoize: bool, shape: SlotShape) -> tuple[LibrarySpec, Target]:
        """The implicit library with all that the function needs, and what a call of it is for."""
        definition = defined.definition
        with self._lock:
            for ref in definition.code:
                self._have_code(ref, new=True)
            spec = self._implicit.get(shape)
            if (
                spec is None
                or not {one.module for one in spec.imports}.issuperset(one.module for one in defined.imports)
                or not {ref.name for ref in spec.code}.issuperset(ref.name for ref in definition.code)
                or not {ref.name for ref in self._implicit_code.values()}.issuperset(ref.name for ref in spec.code)
            ):
                spec = self._next_implicit(defined.imports, shape)
            key = (definition.id, memoize, shape)
            target = self._defined.get(key)
            if target is None:
                # In the order of definition, as the core has them: one that is used all the time is defined again in time.
                way = self._remembering(memoize)
                content = _content(fn, definition, way) if way else b""
                target = self._defined[key] = _target(spec, defined, content)
                if len(self._defined) > self._defined_most:
                    self._defined.popitem(last=False)
                self._client.say(DefineFunctions((definition,)))
            elif target.library != spec.id:
                target = self._defined[key] = _target(spec, defined, target.content)
            self._latest = defined, memoize, shape.concurrency, shape.gpus, spec, target
        return spec, target

    def _next_implicit(self, imports: tuple[ImportSpec, ...], shape: SlotShape) -> LibrarySpec:
        self._implicit_imports.update((one.module, one) for one in imports)
        base = Library(IMPLICIT, imports=None, concurrency=shape.concurrency, gpus=shape.gpus or None).spec(self._put_forever)
        hoisted = tuple(sorted(self._implicit_imports.values(), key=lambda one: one.module))
        old = self._implicit.get(shape)
        code = tuple(ref for _, ref in sorted(self._implicit_code.items()))
        draft = msgspec.structs.replace(base, id=LibraryId(""), imports=hoisted, code=code)
        digest = hashlib.blake2b(msgspec.msgpack.encode(draft), digest_size=8).hexdigest()
        spec = self._implicit[shape] = msgspec.structs.replace(draft, id=LibraryId(f"{IMPLICIT}@{digest}"))
        self._client.say(InstallLibrary(spec))
        if old is not None:
            self._client.say(RemoveLibrary(old.id))
        return spec


def _target(spec: LibrarySpec, defined: Defined, content: bytes) -> Target:
    definition = defined.definition
    return Target(spec.id, definition.id, (IMPLICIT, definition.name), defined.parameters, spec.code, definition, spec, content)


def _content(fn: Callable[..., Any], definition: FunctionDef, way: bytes) -> bytes:
    """By what calls of the function are remembered; empty if it has no content, which is told."""
    from windlass.content import content_of_function

    content = content_of_function(fn, definition.code)
    if content is None:
        log.warning("calls of %r cannot be remembered: it refers to something without a content", definition.name)
    return way + content if content is not None else b""
