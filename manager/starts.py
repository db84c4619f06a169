"""Starts: libraries come and go, their instances start, or fail to, and which workers are at fault.

Theory of operation
-------------------
An instance is STARTING until its worker says that it is ready, or has failed. What a failure means depends on what else is known. A worker
whose Python will not do is *unfit* for the library, which fails when all are. What never worked fails with the first crash or timeout
of a start; what has worked, with `CRASHES_MOST` in a row. Where it serves elsewhere the worker is to blame: that one alone is given up. All
this is forgotten when the library is installed again, or the last worker is lost that it could be tried on.
"""

from __future__ import annotations

from windlass.manager.attempts import Attempts
from windlass.manager.libraries import NEVER, STARTING, LibraryState
from windlass.manager.workers import Instance, Phase, Worker
from windlass.messages import LibraryFailed, LibraryId, LibraryReady, LibrarySpec

#: Starts that may crash or time out in a row, without an answer to any call, before a library counts as one that cannot start; or, where
#: it serves elsewhere, before it is started no more on that worker.
CRASHES_MOST = 3


class Starts(Attempts):
    """The books, who gets what, what becomes of it, and of libraries."""

    def install(self, spec: LibrarySpec, now: float) -> None:
        """A library version is there to be called. Installing it again changes nothing, but one that could not start is tried again."""
        known = self.libraries.get(spec.id)
        if known is not None:
            known.removed = False
            if known.failed:
                known.failed = ""
                self._try_again(known)
                self.structure += 1
            return
        self.libraries[spec.id] = LibraryState(spec, ahead_seconds=self._held_up.ahead_seconds)
        for function in spec.functions:
            self.functions[function.id] = function
        self.structure += 1

    def _try_again(self, state: LibraryState) -> None:
        """What a library could not do anywhere is forgotten."""
        state.crashes, state.tried = 0, NEVER
        state.looked.clear()
        state.asked.clear()
        for worker in self.workers.values():
            worker.unfit.pop(state.spec.id, None)
            worker.crashes.pop(state.spec.id, None)

    def _try_unfit_again(self) -> None:
        """A worker is lost. If it was the last one that a library could be tried on, none shows any more that the others are to blame: the
        library is tried again there, and serves, or fails with its calls."""
        unfit: set[LibraryId] | None = None
        for worker in self.workers.values():
            unfit = set(worker.unfit) if unfit is None else unfit & worker.unfit.keys()
            if not unfit:
                return
        for library in unfit or ():
            self._try_again(self.libraries[library])

    def remove(self, library: LibraryId, now: float) -> None:
        """No more calls of this version will come; its instances end when its calls have."""
        state = self.libraries.get(library)
        if state is not None:
            state.removed, state.removed_at = True, now
            self._dirty[library] = state

    def _library_ready(self, worker: Worker, message: LibraryReady, now: float) -> None:
        instance = worker.instances.get(message.instance)
        if instance is not None and instance.ready is not None:  # its slots have found why it does not run as asked
            instance.ready = message
        if instance is None or instance.phase is not Phase.STARTING:
            return
        state = self.libraries[instance.library]
        state.coming -= instance.target
        instance.phase = Phase.READY
        instance.ready = message
        instance.start_seconds = now - instance.begun_at
        if state.learn_start(instance.start_seconds):
            self._lower_least()
        state.hoisted_seconds += sum(one.seconds for one in message.imports) + message.context_seconds
        self._refresh(instance)
        self._dirty[instance.library] = state

    def _library_failed(self, worker: Worker, message: LibraryFailed, now: float) -> None:
        instance = worker.instances.get(message.instance)
        if instance is None:
            return
        state = self.libraries[instance.library]
        self._ended(instance, worker, now)
        if message.kind == "python":
            worker.unfit[instance.library] = message.text
            if all(instance.library in one.unfit for one in self.workers.values()):
                self._fail_library(state, message.text, now)
        elif message.kind in STARTING and not state.done and not state.works_elsewhere(message.kind):
            # What never worked would fail the same way again, and a start that took its whole time is not waited for twice more.
            self._fail_library(state, message.text, now)
        elif message.at_start or message.kind in STARTING:
            state.crashes += 1
            worker.crashes[instance.library] = worker.crashes.get(instance.library, 0) + 1
            elsewhere = state.works_elsewhere(message.kind)
            if worker.crashes[instance.library] >= CRASHES_MOST and elsewhere:
                worker.unfit[instance.library] = message.text  # this node is bad
            elif state.crashes >= CRASHES_MOST and not elsewhere:
                self._fail_library(state, f"{message.text}\nIt failed so {state.crashes} times in a row.", now)
        self._restructured(worker)

    def _ended(self, instance: Instance, worker: Worker, now: float) -> None:
        """An instance has ended, asked or not; calls that it has go back. One that was asked to has none: they are another one's by now."""
        mine = worker.by_library.get(instance.library) is instance
        held = [call for call in worker.calls.values() if mine and call.spec.library == instance.library]
        for call in held:
            del worker.calls[call.spec.call]
        self._gone(instance, worker, now)
        for call in reversed(held):
            self._back(call, now)

    def _fail_library(self, state: LibraryState, text: str, now: float) -> None:
        state.failed = f"library {state.spec.name!r} cannot start: {text}"
        self._end_waiting(state, now)
