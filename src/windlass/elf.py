"""Programs and shared libraries (ELF): which libraries one needs, where it looks for them, and how to make it look elsewhere.

Theory of operation
-------------------
A relocatable environment must find its libraries beside itself, wherever it is unpacked.  The loader knows ``$ORIGIN``, the folder of the
file that asks, in a *search path*: DT_RPATH, or DT_RUNPATH, which hides all DT_RPATHs from that file's needs.  A DT_RPATH of the program
serves every library that has no DT_RUNPATH, also those loaded later; so one path in the interpreter is enough for most.

`Elf.set_search` changes bytes in place and moves nothing, so it cannot break what it does not know of:

* a path that is there is written over, where the new one is not longer;
* else the text takes the place of the *build id*, a note that the loader maps and nobody reads at run time, and an empty entry at the end
  of the dynamic table (linkers leave some), or the one that is for debuggers, points there.  The entry's offset counts from the
  string table, which usually lies behind the notes; it wraps around, as the loader's sum does.

`Elf.bare` leaves out what the loader never reads: names and lines for debuggers, which lie behind all that is loaded and are most of many a
library.

64-bit little-endian files only: x86-64, ARM, POWER and RISC-V nodes have no others.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import mmap

MAGIC: Final = b"\x7fELF\x02\x01"
_HEADER: Final = struct.Struct("<16xHHIQQQIHHHHHH")
_SEGMENT: Final = struct.Struct("<IIQQQQQQ")
_ENTRY: Final = struct.Struct("<qQ")
_LOAD, _DYNAMIC, _NOTE = 1, 2, 4
#: In the header: where the table of sections is (8 bytes), and the size, number and names of its entries (2 bytes each).
_SECTIONS_OFFSET, _SECTIONS_WORDS = 40, 58
_NULL, _NEEDED, _STRTAB, _STRSZ, _SONAME, _RPATH, _DEBUG, _RUNPATH = 0, 1, 5, 10, 14, 15, 21, 29
_BUILD_ID: Final = 3


class NotElf(ValueError):
    """The bytes are no ELF file that this module can read; the text says what they lack."""


class Elf:
    """One file's bytes; `data` has the changes."""

    def __init__(self, data: bytes | mmap.mmap) -> None:
        """``data``: the file, or a map of it that may be written to (libraries have gigabytes). Raises `NotElf`."""
        if data[: len(MAGIC)] != MAGIC:
            raise NotElf("no 64-bit little-endian ELF file")
        self.data: bytearray | mmap.mmap = bytearray(data) if isinstance(data, bytes) else data
        self._segments: list[tuple[int, int, int, int]] = []
        #: The kind of machine that it is for, by its number (62: x86-64).
        self.machine = 0
        #: Where the dynamic table is: offset, and number of entries.
        self._table = (0, 0)
        self.needed: list[str] = []
        self.soname = ""
        #: Where it looks for libraries: ``$ORIGIN`` is its own folder.
        self.search: tuple[str, ...] = ()
        #: The search path hides those of the program that loads it (DT_RUNPATH).
        self.hides = False
        try:
            self._read()
        except (struct.error, IndexError, UnicodeDecodeError) as error:
            raise NotElf(f"a damaged ELF file: {error}") from None

    def _read(self) -> None:
        header = _HEADER.unpack_from(self.data, 0)
        self.machine, place, size, count = header[1], header[4], header[8], header[9]
        for index in range(count):
            kind, _, offset, address, _, length, _, _ = _SEGMENT.unpack_from(self.data, place + index * size)
            self._segments.append((kind, offset, address, length))
            if kind == _DYNAMIC:
                self._table = (offset, length // _ENTRY.size)
        entries = list(self._entries())
        strings = self._strings()
        for _, tag, value in entries:
            if tag == _NEEDED:
                self.needed.append(self._text(strings + value))
            elif tag == _SONAME:
                self.soname = self._text(strings + value)
            elif tag in (_RPATH, _RUNPATH) and not self.hides:
                self.search = tuple(part for part in self._text(self._offset_of(self._address(strings) + value)).split(":") if part)
                self.hides = tag == _RUNPATH

    def _entries(self) -> Iterator[tuple[int, int, int]]:
        """(offset, tag, value) of the dynamic table, up to and with its first empty entry."""
        offset, count = self._table
        for place in range(offset, offset + count * _ENTRY.size, _ENTRY.size):
            tag, value = _ENTRY.unpack_from(self.data, place)
            yield place, tag, value
            if tag == _NULL:
                return

    def _strings(self) -> int:
        """Offset of the string table."""
        return self._offset_of(next((value for _, tag, value in self._entries() if tag == _STRTAB), 0))

    def _offset_of(self, address: int) -> int:
        address %= 1 << 64
        for kind, offset, start, length in self._segments:
            if kind == _LOAD and start <= address < start + length:
                return offset + address - start
        return 0

    def _address(self, place: int) -> int:
        for kind, offset, start, length in self._segments:
            if kind == _LOAD and offset <= place < offset + length:
                return start + place - offset
        raise IndexError(f"offset {place} is not loaded")

    def _text(self, place: int) -> str:
        return bytes(self.data[place : self._end_of_text(place)]).decode()

    def _end_of_text(self, place: int) -> int:
        end = self.data.find(b"\0", place)
        if end < 0:
            raise IndexError(f"the text at offset {place} has no end")
        return end

    def bare(self) -> bytes:
        """The file without what follows the last byte that is loaded, and without its table of sections."""
        header = _HEADER.unpack_from(self.data, 0)
        end = max([header[4] + header[8] * header[9], *(offset + length for _, offset, _, length in self._segments)])
        made = bytearray(self.data[:end])
        made[_SECTIONS_OFFSET : _SECTIONS_OFFSET + 8] = bytes(8)
        made[_SECTIONS_WORDS : _SECTIONS_WORDS + 6] = bytes(6)
        return bytes(made)

    # ---------------------------------------------------------------- changing

    def set_search(self, path: str, *, hides: bool = False) -> bool:
        """Look for libraries along ``path`` (parts with ``:`` between); False: the file has no room for it, and is as it was."""
        strings, text = self._strings(), path.encode() + b"\0"
        for place, tag, value in self._entries():
            if tag in (_RPATH, _RUNPATH):
                there = self._offset_of(self._address(strings) + value)
                if self._end_of_text(there) - there + 1 < len(text):
                    break
                return self._point(place, value, there, text, path, hides=hides)
        room = self._build_id()
        entry = self._spare_entry()
        if not entry or room[1] < len(text):
            return False
        value = (self._address(room[0]) - self._address(strings)) % (1 << 64)
        return self._point(entry, value, room[0], text, path, hides=hides)

    def _point(self, entry: int, value: int, there: int, text: bytes, path: str, *, hides: bool) -> bool:
        self.data[there : there + len(text)] = text
        _ENTRY.pack_into(self.data, entry, _RUNPATH if hides else _RPATH, value)
        self.search, self.hides = tuple(part for part in path.split(":") if part), hides
        return True

    def _spare_entry(self) -> int:
        """Offset of an entry of the dynamic table to use; 0: there is none."""
        offset, count = self._table
        debug = last = 0
        for place, tag, _ in self._entries():
            if tag in (_RPATH, _RUNPATH):
                return place
            if tag == _DEBUG:
                debug = place
            last = place if tag == _NULL else last
        # The table must still end with an empty one.
        return last if last and last + 2 * _ENTRY.size <= offset + count * _ENTRY.size else debug

    def _build_id(self) -> tuple[int, int]:
        """Offset and length of the build id; (0, 0): there is none, or it is not loaded."""
        for kind, offset, _, length in self._segments:
            place, end = offset, offset + length
            while kind == _NOTE and place + 12 <= end:
                name, size, what = struct.unpack_from("<III", self.data, place)
                content = place + 12 + (name + 3 & ~3)
                if what == _BUILD_ID and bytes(self.data[place + 12 : place + 15]) == b"GNU":
                    return (content, size) if any(k == _LOAD and o <= content < o + n for k, o, _, n in self._segments) else (0, 0)
                place = content + (size + 3 & ~3)
        return 0, 0
