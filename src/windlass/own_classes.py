"""Classes that come with results of an earlier life or of another program: which of the classes here they are.

Theory of operation
-------------------
A class that travels by value has a number, which its program gave it. A result has that number, and a blob that defines the class for
those who do not know it (`windlass.byvalue`). A result that a journal kept, or that another program left (`Attached.find`), has a number
of its own time. Then the class goes by its name, as in plain pickle: the program's class of that name is meant, on a worker the one that
the function knows, if it can have the instances of the other one (`fits`); else the blob's class is, a copy.

As in plain pickle, too, only a class that its module had under its name goes by name (the number says so). Two classes of one name, made by
a function or in a loop, would not be told apart.
"""

from __future__ import annotations

from enum import EnumType
from functools import partial
from inspect import get_annotations
from io import BytesIO
from pickle import Unpickler
from typing import Any

from windlass import byvalue, snapshots
from windlass.pickling import NUMBER_PLACES, of_name


def defined(tracker: str, blob: bytes) -> Any:
    """The class that `blob` defines under an unknown number, or the one here that it is."""
    reader = _Reader(BytesIO(blob))
    kind = reader.load()
    for number, copy in reader.made.items():
        own = _candidate(number, copy)
        if own is not None and own is not copy and fits(own, copy):
            byvalue.know(number, own)
    return byvalue.known(tracker) or kind


def fits(own: Any, kind: Any) -> bool:
    """Whether an instance of `kind` can be one of `own`: class and bases have the same names, slots, fields of a tuple, and members of an
    Enum; and every method and annotated field that those of the other one have, whatever the methods do now."""
    try:
        return (
            _line(own) == _line(kind)
            and getattr(own, "_fields", None) == getattr(kind, "_fields", None)
            and all(mine is one or _has(mine, one) for mine, one in zip(own.__mro__, kind.__mro__, strict=True))
        )
    except Exception:  # noqa: BLE001 - of values and metaclasses of the user's
        return False


class _Reader(Unpickler):
    """Reads what defines a class, and notes which ones it makes. Those that are known here stay what they are."""

    def __init__(self, file: BytesIO) -> None:
        super().__init__(file)
        self.made: dict[str, Any] = {}

    def find_class(self, module: str, name: str, /) -> Any:
        found = super().find_class(module, name)
        if module != "cloudpickle.cloudpickle":
            return found
        if name in NUMBER_PLACES:
            return partial(self._make, found, NUMBER_PLACES[name])
        return partial(self._fill, found) if name == "_class_setstate" else found

    def _make(self, make: Any, place: int, *arguments: Any) -> Any:
        known = byvalue.known(arguments[place])
        if known is None:
            known = self.made[arguments[place]] = make(*arguments)
        return known

    def _fill(self, fill: Any, kind: Any, state: Any) -> Any:
        return fill(kind, state) if any(kind is one for one in self.made.values()) else kind


def _candidate(number: str, kind: Any) -> Any:
    if not number.endswith(byvalue.NAMED):
        return None
    if snapshots.on_worker:
        return byvalue.namesake(number, kind)
    own = of_name(kind)
    return own if isinstance(own, type) else None


def _line(kind: Any) -> list[str]:
    return [base.__qualname__ for base in type(kind).__mro__ + kind.__mro__]


def _has(own: Any, kind: Any) -> bool:
    if isinstance(kind, EnumType):
        return _members(own) == _members(kind)
    methods = {name for name, value in byvalue.space(kind).items() if hasattr(value, "__get__")}
    return (
        byvalue.slots(own) == byvalue.slots(kind)
        and methods <= set(byvalue.space(own))
        and set(get_annotations(kind)) <= set(get_annotations(own))  # looking into a class would put some there
    )


def _members(kind: Any) -> dict[str, Any]:
    return {name: member.value for name, member in kind.__members__.items()}
