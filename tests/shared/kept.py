"""A store for snapshots of modules."""

from __future__ import annotations

import io
import zipfile
from typing import Any

from windlass import snapshots
from windlass.messages import ObjectName, ObjectRef
from windlass.objects import content_name


class Kept:
    """A store of the simplest kind."""

    def __init__(self) -> None:
        self.archives: dict[str, bytes] = {}

    def put(self, data: Any) -> ObjectRef:
        name = content_name(data)
        self.archives[name] = bytes(data)
        return ObjectRef(ObjectName(name), len(data))

    def texts(self, *tops: str) -> list[str]:
        """The Python files that go along with these modules now."""
        refs = snapshots.snapshots_of(tops, self.put, max_age=-1)
        archives = [zipfile.ZipFile(io.BytesIO(self.archives[ref.name])) for ref in refs]
        return [archive.read(name).decode() for archive in archives for name in archive.namelist()]
