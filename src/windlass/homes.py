"""Where modules live: whether a worker has a module, gets its source, or cannot import it.

Theory of operation
-------------------
Every module has a *home*:

``INSTALLED``  the standard library, site-packages, Windlass itself: the worker has it, functions go by name;
``LOCAL``      found on the program's path outside of those, such as helpers.py beside the script, in an editable install, or in a zip
               archive: its top-level module or package goes as a snapshot (`windlass.snapshots`), and its functions by name;
``BY_VALUE``   ``__main__``, notebooks, modules made by hand: nobody else can import it, cloudpickle carries its functions.

A module without a file that is a part of a compiled one (pybind11 and nanobind make such) comes with that, wherever it is imported.

A module that is not imported yet has the home that it would have: what is remembered of calls counts by it (`windlass.content`), and must
not depend on what the program has called before.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec

Home = Literal["installed", "local", "by value"]
INSTALLED: Final = "installed"
LOCAL: Final = "local"
BY_VALUE: Final = "by value"

#: Local modules whose source was there when it was last looked at.
sources: set[str] = set()

_homes: dict[str, tuple[object, Home]] = {}


def home_of(name: str) -> Home:
    """Where the module of this dotted name lives. It need not be imported; unknown names are `BY_VALUE`."""
    module = sys.modules.get(name)
    known = _homes.get(name)
    if known is not None and known[0] is module and module is not None:
        return known[1]
    found = _find_home(name, module)
    _homes[name] = (module, found)
    return found


def _find_home(name: str, module: Any) -> Home:
    top = name.partition(".")[0]
    if top == "windlass":
        return INSTALLED
    if not top or top in ("__main__", "__mp_main__"):
        return BY_VALUE
    if module is None:
        if top in sources:
            return LOCAL  # also at a moment when its file is not there, as an editor has moved it away
        spec = find_spec(top)
        places = [] if spec is None else places_of(spec)
        if spec is not None and not places:
            return INSTALLED  # built in or frozen
        if not places or not any(map(_exists, places)):
            return BY_VALUE
        if all(map(is_installed, places)) or _is_standard(top, places[0]):
            return INSTALLED
        if spec is not None and not spec.has_location and not any(map(_has_python, places)):
            return BY_VALUE  # any folder on the path would do as a namespace package: one of data is none
        return LOCAL
    file = getattr(module, "__file__", None)
    if not isinstance(file, str):
        if getattr(getattr(module, "__spec__", None), "origin", None) in ("built-in", "frozen"):
            return INSTALLED
        paths = [path for path in getattr(module, "__path__", ()) if isinstance(path, str)]
        if not paths:
            return _home_in_compiled(name)
        if all(map(is_installed, paths)):
            return INSTALLED
        file = next(path for path in paths if not is_installed(path))
    elif is_installed(file) or _is_standard(top, file):
        return INSTALLED
    # It must be what an import of that name gives in another process, or in this one before it went elsewhere.
    spec = spec_of(top) if name != top and home_of(top) == LOCAL else find_spec(top)
    if spec is None or not _exists(file):
        return BY_VALUE
    real = os.path.realpath(file)
    for place in map(os.path.realpath, places_of(spec)):
        if real == place or real.startswith(place + os.sep):
            return LOCAL
    return BY_VALUE


def _home_in_compiled(name: str) -> Home:
    above = name.rpartition(".")[0]
    module = sys.modules.get(above)
    file = getattr(module, "__file__", None)
    compiled = file.endswith(".so") if isinstance(file, str) else not hasattr(module, "__path__")  # or a part itself
    return home_of(above) if module is not None and compiled else BY_VALUE


def _is_standard(top: str, path: str) -> bool:
    """It lies where the standard library is, be that an archive, as of programs that bring their Python along."""
    if top not in sys.stdlib_module_names:
        return False  # the program's own, which may lie there, too
    import encodings  # the one that is never frozen, nor built in

    return path.startswith(os.path.join(os.path.dirname(os.path.dirname(encodings.__file__)), ""))


def _exists(path: str) -> bool:
    if os.path.exists(path):
        return True
    from windlass import zipped  # few programs have any

    return zipped.exists(path)


def _has_python(folder: str) -> bool:
    with suppress(OSError):
        return any(name.endswith(".py") for name in os.listdir(folder))
    from windlass import zipped

    with suppress(zipped.Unreadable):
        return any(name.endswith(".py") and name.count("/") == 1 for name, *_ in zipped.files(folder))
    return False


def find_spec(top: str) -> ModuleSpec | None:
    """The spec that an import would find, whatever is imported already."""
    for finder in list(sys.meta_path):
        try:
            spec = finder.find_spec(top, None)
        except Exception:  # noqa: BLE001 - anybody's finder
            continue
        if spec is not None:
            return spec
    return None


def spec_of(top: str) -> ModuleSpec | None:
    """Of a local module: the one that it was imported by, also when the program has gone elsewhere since, where "" on its path is another
    folder; for one that is not imported what an import would find. What is no longer there is looked for anew."""
    from importlib.machinery import ModuleSpec

    spec = getattr(sys.modules.get(top), "__spec__", None)
    if isinstance(spec, ModuleSpec) and spec.has_location and spec.origin and _exists(spec.origin):
        return spec
    return find_spec(top)


def places_of(spec: ModuleSpec) -> list[str]:
    """The folders of a package, or the file of a module."""
    if spec.submodule_search_locations is not None:
        return [path for path in spec.submodule_search_locations if not path.startswith("__editable__")]
    return [spec.origin] if spec.has_location and spec.origin else []


_installed_folders: tuple[str, ...] = ()


def is_installed(path: str) -> bool:
    global _installed_folders
    if not _installed_folders:
        import sysconfig

        wanted = ("stdlib", "platstdlib", "purelib", "platlib")
        folders = {os.path.join(folder, "") for name, folder in sysconfig.get_paths().items() if name in wanted}
        _installed_folders = tuple(sorted(folders | {os.path.realpath(folder) + os.sep for folder in folders}))
    path = os.path.abspath(path)
    if f"{os.sep}site-packages{os.sep}" in path or f"{os.sep}dist-packages{os.sep}" in path:
        return True
    return path.startswith(_installed_folders)
