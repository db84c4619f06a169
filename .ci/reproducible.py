"""The build backend: setuptools', with source archives that have the same bytes whenever and wherever they are built.

Theory of operation: with ``SOURCE_DATE_EPOCH`` set, setuptools builds the same wheel each time, but its source archives hold the times
of the checkout's files, the builder's name and the time of the build. They are written anew here: members in order of their names, all
of that date, nobody's, with modes 644 and 755. Without the variable nothing is changed.
"""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  # all the other hooks


def build_sdist(sdist_directory: str, config_settings: dict[str, Any] | None = None) -> str:
    """The hook of that name: builds a source archive in the folder and returns its name."""
    name: str = build_meta.build_sdist(sdist_directory, config_settings)
    date = os.environ.get("SOURCE_DATE_EPOCH")
    if date:
        write_anew(Path(sdist_directory, name), int(date))
    return name


def write_anew(archive: Path, date: int) -> None:
    """The same content of a ``.tar.gz``, with nothing of who built it and when."""
    plain = io.BytesIO()
    with tarfile.open(archive) as old, tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as new:
        for member in sorted(old.getmembers(), key=lambda one: one.name):
            member.mtime, member.uid, member.gid, member.uname, member.gname, member.pax_headers = date, 0, 0, "", "", {}
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            new.addfile(member, old.extractfile(member) if member.isfile() else None)
    with open(archive, "wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=date) as packed:
        packed.write(plain.getvalue())
