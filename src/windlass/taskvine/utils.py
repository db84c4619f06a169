"""``from ndcctools.taskvine.utils import load_variable_from_library``, as functions of libraries write it, with its first words changed."""

from windlass.worker.slot_api import load_variable_from_library

__all__ = ["load_variable_from_library"]
