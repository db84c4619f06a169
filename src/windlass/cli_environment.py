"""The noun ``environment`` of the command line: pack the Python that pilots are to run.

Theory of operation: all of it is `windlass.environment`; here words become its arguments, and what it tells goes to stderr, so that
stdout has the archive's path alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse


def pack(chosen: argparse.Namespace, options: Mapping[str, object]) -> int:
    from windlass import environment

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    packed = environment.pack(chosen.output, source=chosen.source, exclude=chosen.exclude, say=say)
    if chosen.json:
        names = ("path", "sha256", "size", "unpacked", "files", "python", "windlass")
        print(json.dumps({name: getattr(packed, name) for name in names}, default=str))
    else:
        print(packed.path)
    return 0


def add_parsers(nouns: Any) -> None:
    """Add the parsers."""
    import argparse

    environment = nouns.add_parser("environment", help="pack the Python that pilots run, so that each node reads it once")
    environment.set_defaults(parser=environment)
    verbs = environment.add_subparsers(title="commands", metavar="COMMAND")
    one = verbs.add_parser(
        "pack",
        help="make one archive of a Python with its packages, for environment= of a pool",
        description="Make one archive of a Python: interpreter, shared libraries, standard library, installed packages,\n"
        "editable installs, Windlass. It works wherever it is unpacked, on nodes without Python. Prints its path.\n"
        "Then: windlass factory run slurm --environment ARCHIVE",
        epilog="exit status: 0 done, 2 it cannot be packed, and the text says why; see: windlass explain environments",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    one.add_argument("-o", "--output", metavar="FILE", help="file, or folder for windlass-environment-DIGEST.tar.gz (the current one)")
    one.add_argument(
        "--from", dest="source", metavar="PREFIX", help="a venv, a conda environment, /usr, or a Python (the one that runs this)"
    )
    one.add_argument("--exclude", action="append", default=[], metavar="NAME", help="an installed distribution to leave out; repeatable")
    one.add_argument("--json", action="store_true", help="one object: path, sha256, size, unpacked, files, python, windlass")
    one.set_defaults(command=pack)
