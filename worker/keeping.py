"""A slot's part in results that stay on workers: it leaves their parts where the worker takes them in, and reads them from the cache."""

from __future__ import annotations

import os
from typing import Any

from windlass.files import ReplicaMissing
from windlass.messages import KEPT_BASE, ObjectRef
from windlass.objects import map_object, write_result
from windlass.worker.slotlink import kept_folder, kept_name


class Keeper:
    """Leaves the parts of a result on the worker, where `windlass.worker.supply.Supply.keep` finds them."""

    def __init__(self, cache_folder: str, prefix: str) -> None:
        self.folder, self.prefix, self.count = kept_folder(cache_folder), prefix, 0

    def put(self, data: Any) -> ObjectRef:
        """The next part."""
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        self.count += 1
        return write_result(self.folder, data, kept_name(self.prefix, self.count))


def open_kept(cache_folder: str, name: str) -> memoryview:
    """A part of a result that stayed on a worker. Raises `ReplicaMissing`."""
    try:
        return map_object(os.path.join(cache_folder, name, KEPT_BASE))
    except OSError as error:
        raise ReplicaMissing(f"result {name} is not in the worker's cache any more") from error
