"""What a worker was told of: the only objects and files that it is given.

Theory of operation
-------------------
A worker gets bytes only of what it needs for something that the manager has sent it: a call that it holds, a library instance, a function.
(Or of what it reads for others, as `windlass.manager.replicas` has decided; it cannot ask for that.)
Names are no secret to be relied on: who knows a content, or its digest, knows its name.  Nothing is noted for that while calls are sent,
beyond the spans of the last `RECENT` ones: what a worker holds says what it was told of, and it is looked at when the worker asks.

Requests for objects come over another connection than the ends of calls, so one may be dealt with when the call it was for has just ended,
and be for the next call too: therefore the recent ones count as well.  Files are asked for over the connection of the calls.

A core, like the books that it looks into.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from windlass.manager.books import Books
from windlass.manager.workers import Worker
from windlass.messages import FileName, FunctionDef, ObjectName, ObjectRef, WorkerId


def was_told_of_object(books: Books, worker_id: str, name: ObjectName) -> bool:
    """Whether this worker may have this object."""
    worker = books.workers.get(WorkerId(worker_id))
    if worker is None:
        return False
    if any(ref.name == name for spans in worker.recent for ref in spans):
        return True
    return any(ref.name == name for ref in _objects(books, worker))


def untold_files(books: Books, worker: Worker, names: Iterable[FileName]) -> set[FileName]:
    """Those of these files that this worker may not have. Asked once for all of a message: a call may have thousands."""
    left = set(names)
    for call in reversed(worker.calls.values()):  # who asks is most likely new
        if not left:
            return left
        left.difference_update([ref.name for ref in call.spec.inputs])
    return left - _other_files(books, worker) if left else left


def _objects(books: Books, worker: Worker) -> Iterator[ObjectRef]:
    for call in worker.calls.values():
        yield from call.spec.spans
    for instance in worker.instances.values():
        yield from instance.spec.code
        yield from _of_functions(instance.spec.functions)
    yield from _of_functions(books.functions[key] for key in worker.functions if key in books.functions)


def _of_functions(functions: Iterator[FunctionDef] | tuple[FunctionDef, ...]) -> Iterator[ObjectRef]:
    for function in functions:
        if function.object is not None:
            yield function.object
        yield from function.code


def _other_files(books: Books, worker: Worker) -> set[FileName]:
    """Environments, what stands in rooms, and the archives that any of it is unpacked from."""
    names = {ref.name for call in worker.calls.values() for ref in call.spec.inputs}
    names.update(name for call in worker.calls.values() if call.spec.sandbox is not None for _, name, _ in call.spec.sandbox.inputs)
    names.update(one.spec.environment.name for one in worker.instances.values() if one.spec.environment is not None)
    if (own := worker.info.environment) is not None:
        names |= {own.packed.name, own.unpacked.name}
    known = [books.replicas.files[name] for name in names if name in books.replicas.files]
    return names | {file.origin.archive.name for file in known if file.origin.archive is not None}
