"""Views: what a manager tells a dashboard, in parts that fit into messages. Pure.

Theory of operation
-------------------
A view is the status object (docs/status.md) and what a recorder has noted, as one JSON object in several pieces: a reader joins them key by
key, lists by putting them behind each other.  Stories of pilots are left out unless they failed, for they are long and there may be
thousands.  ``took`` is what composing the last view took, in seconds; a reader that waits a hundred times as long between two costs a
hundredth of the manager's time, however large the manager is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from windlass.manager.books import Books
from windlass.manager.recorder import Recorder
from windlass.messages import GetView, View

#: Bytes of one piece: a message has at most 1 MiB.
PIECE_BYTES: Final = 512 << 10
#: Lists that may be long.
_LONG: Final = ("libraries", "workers", "pilots", "files", "causes", "lanes", "running", "samples", "programs", "pools")

_encode: Final = msgspec.json.Encoder().encode


def whole_view(found: dict[str, Any], books: Books, recorder: Recorder, ask: GetView, now: float, took: float) -> dict[str, Any]:
    """A view in one piece: ``found`` is the status object."""
    lanes = recorder.lanes(books, ask.version if ask.since else 0)
    for row in found.get("pilots", ()):
        if not row["failed"]:
            row["story"] = []
    return {
        **found,
        "causes": books.failures.causes.rows(),
        "record": {**recorder.told(ask.since), "took": took, "until": round(max(now - recorder.began_at, 1e-4), 4)},
        "samples": recorder.samples.since(ask.since),
        "running": recorder.running(books, now),
        "lanes": lanes,
    }


def view(found: dict[str, Any], books: Books, recorder: Recorder, ask: GetView, now: float, took: float) -> list[View]:
    """The answer to a `GetView`."""
    pieces = list(_pieces(whole_view(found, books, recorder, ask, now, took)))
    return [View(piece, more=number < len(pieces)) for number, piece in enumerate(pieces, 1)]


def _pieces(whole: dict[str, Any]) -> Iterator[bytes]:
    head = {key: value for key, value in whole.items() if key not in _LONG}
    yield _encode({**head, **{key: [] for key in _LONG if key in whole}})
    for key in _LONG:
        yield from _split(key, whole.get(key, []))


def _split(key: str, rows: list[Any]) -> Iterator[bytes]:
    if not rows:
        return
    if len(rows) > 4000:  # halved before it is encoded in vain
        encoded = b""
    else:
        encoded = _encode({key: rows})
        if len(encoded) <= PIECE_BYTES:
            yield encoded
            return
        if len(rows) == 1:
            return  # one row that no message holds is left out
    half = len(rows) // 2
    yield from _split(key, rows[:half])
    yield from _split(key, rows[half:])
