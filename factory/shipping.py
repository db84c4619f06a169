"""What travels to nodes that share no files with the user: Windlass itself, with the modules that its worker needs.

Theory of operation
-------------------
The archive is made from what is installed here, so that both ends are of one version: the package ``windlass`` and, whole, the
distributions named in `NEEDED`, as their own lists of files say.  It suits nodes whose Python has the same minor version; for others,
and for the modules that functions import, there are ``environment=`` and ``container_image=``.  Which one a node has shows only there, so
`CHECK` is no module: it runs in whatever Python is there."""

from __future__ import annotations

import os
import sys
import tarfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Final

import windlass
from windlass.errors import UsageError

#: What the worker imports, and what that imports.
NEEDED: Final = ("blake3", "cffi", "cloudpickle", "cryptography", "msgspec", "psutil", "pycparser", "typing_extensions")
#: Of these a distribution may be missing: another one needs it only for some versions of Python.
OPTIONAL: Final = frozenset({"cffi", "pycparser", "typing_extensions"})

#: What no node needs, below the package: ``pages`` are for people.
_LEFT_OUT: Final = frozenset({"__pycache__", "pages"})

#: Becomes the worker, whose words follow it. Kept to what every Python can read.
CHECK: Final = """\
import os, sys
if sys.path[0] == "": del sys.path[0]
def refuse(text):
    sys.stderr.write("windlass pilot on %s: %s %s; python= names one that all nodes have, requirements= keeps away from nodes like this, "
                     "environment= or container= brings one along\\n" % (os.uname()[1], sys.executable, text))
    sys.exit(5)
here = "%d.%d" % sys.version_info[:2]
if here != "PYTHON":
    refuse("is Python %s, and the factory runs PYTHON: functions cannot be sent to it" % here)
try:
    import windlass.messages
except ImportError as error:
    refuse("cannot load the Windlass that came with the job (%s)" % error)
os.execv(sys.executable, [sys.executable] + sys.argv[1:])
"""


def check(python: str = f"{sys.version_info[0]}.{sys.version_info[1]}") -> str:
    """`CHECK` against the Python that nodes must have."""
    return CHECK.replace("PYTHON", python)


def package_files() -> Iterator[tuple[Path, str]]:
    """The package's own files: where they are, and their names in the archive. Links of a checkout are followed."""
    root = Path(windlass.__file__).parent
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if name not in _LEFT_OUT)
        for name in sorted(files):
            if not name.endswith(".pyc"):
                path = Path(folder) / name
                yield path, str(Path("windlass") / path.relative_to(root))


def distribution_files(name: str) -> Iterator[tuple[Path, str]]:
    """The files of an installed distribution that lie where modules do. Raises `UsageError` where the installation does not tell."""
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        if name in OPTIONAL:
            return
        raise UsageError(
            f"{name} is not installed as a package, so it cannot be sent to nodes; give environment= or container_image="
        ) from None
    if found.files is None:
        raise UsageError(f"the installation of {name} has no list of its files; give environment= or container_image=")
    for file in found.files:
        if ".." not in file.parts and "__pycache__" not in file.parts and not file.is_absolute():
            path = Path(str(found.locate_file(file)))
            if path.is_file():
                yield path, str(file)


def write_modules(archive: Path) -> None:
    """Write the archive, atomically."""
    partial = archive.with_name(f"{archive.name}.{os.getpid()}")
    with tarfile.open(partial, "w") as tar:
        for path, name in package_files():
            tar.add(path.resolve(), name, recursive=False)
        for distribution in NEEDED:
            for path, name in distribution_files(distribution):
                tar.add(path.resolve(), name, recursive=False)
    partial.replace(archive)
