"""A slot's part in results that stay on workers: it leaves their parts where the worker takes them in, and reads them from the cache."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from windlass.files import ReplicaMissing
from windlass.messages import KEPT_BASE, ObjectRef
from windlass.objects import map_object, remove_unfinished, write_results
from windlass.worker.slotlink import Setup, kept_folder, kept_name


class Keeper:
    """Leaves the parts of a result on the worker, where `windlass.worker.supply.Supply.keep` finds them."""

    def __init__(self, cache_folder: str, prefix: str, slot: int) -> None:
        self.folder, self.prefix, self.slot = kept_folder(cache_folder), prefix, slot

    def put(self, parts: Sequence[Any]) -> list[ObjectRef]:
        """All of them, or none."""
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        names = [kept_name(self.prefix, number + 1) for number in range(len(parts))]
        return write_results(self.folder, parts, names, self.slot)


def remove_torn(setup: Setup, slot: int) -> None:
    """Remove what this slot, or the child in which it ran a call, had begun to write when it died."""
    for folder in (setup.store_folder, kept_folder(setup.cache_folder)):
        remove_unfinished(folder, slot)


def open_kept(cache_folder: str, name: str) -> memoryview:
    """A part of a result that stayed on a worker. Raises `ReplicaMissing`; `OSError` where it is there: it would not be fetched again."""
    try:
        return map_object(os.path.join(cache_folder, name, KEPT_BASE))
    except FileNotFoundError as error:
        raise ReplicaMissing(f"result {name} is not in the worker's cache any more") from error
