"""The elements of a DICOM file, walked before GDCM sees it: every length must lie within the file.

GDCM allocates what a length announces, so that one wrong byte can ask for gigabytes. Only the structure is
read here (DICOM PS3.5, section 7); values are GDCM's business.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

_LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
_SHORT = (
    b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FL", b"FD", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL",
    b"SS", b"ST", b"TM", b"UI", b"UL", b"US",
)  # fmt: skip
_ITEM, _ITEM_END, _SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)
_PIXELS = (0x7FE0, 0x0010)
_UNDEFINED = 0xFFFFFFFF
_IMPLICIT, _BIG_ENDIAN, _DEFLATED = (
    "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99",
)  # fmt: skip
_DEEPEST = 32

#: (group, element)
Tag = tuple[int, int]


def walk_elements(path: Path) -> dict[Tag, bytes]:
    """Returns the short values (up to 64 bytes) of a file's outermost elements by tag.

    Of pixel data the value is empty.

    Raises:
        ValueError: an element that goes beyond the file or its sequence, an unknown kind of value, no end;
            the message tells where, and nothing of the content.
    """
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found: dict[Tag, bytes] = {}
        place = 132 if data[128:132] == b"DICM" else 0
        end = len(data)
        meta = _Walk(data, "<", explicit=True)
        while place and data[place : place + 2] == b"\x02\x00":
            tag, start, place = meta.element(place, end, 0)
            found[tag] = data[start : min(place, start + 64)]
        syntax = found.get((2, 0x10), b"").decode("latin-1").strip("\0 ")
        if syntax == _DEFLATED:
            raise ValueError("a deflated file")
        explicit = data[place + 4 : place + 6] in _LONG + _SHORT if not syntax else syntax != _IMPLICIT
        walk = _Walk(data, ">" if syntax == _BIG_ENDIAN else "<", explicit)
        last = (0, 0)
        while place < end:
            if _PIXELS in found and not any(data[place:end]):
                break  # zeros that some archives add
            tag, start, place = walk.element(place, end, 0)
            if tag <= last:
                raise ValueError(f"elements out of order at byte {start}")
            last = tag
            found[tag] = b"" if tag == _PIXELS else data[start : min(place, start + 64)]
        return found


class _Walk:
    """Steps over the elements of one encoding."""

    def __init__(self, data: mmap.mmap, order: str, explicit: bool) -> None:
        self.data, self.order, self.explicit = data, order, explicit

    def element(self, place: int, end: int, depth: int) -> tuple[Tag, int, int]:
        """Tag, first byte of the value, byte after the element."""
        tag = self._tag(place, end)
        kind = self.data[place + 4 : place + 6]
        if tag[0] == 0xFFFE or not self.explicit:
            length, start = self._unpack("I", place + 4, end), place + 8
        elif kind in _LONG:
            length, start = self._unpack("I", place + 8, end), place + 12
        elif kind in _SHORT:
            length, start = self._unpack("H", place + 6, end), place + 8
        else:
            raise ValueError(f"no kind of value at byte {place}")
        if length == _UNDEFINED:
            # Of unknown kind and length: a sequence in implicit encoding (PS3.5, 6.2.2).
            unknown = self.explicit and kind == b"UN"
            walk = _Walk(self.data, "<", explicit=False) if unknown else self
            return tag, start, walk._items(start, end, depth + 1, fragments=tag == _PIXELS, open_end=True)
        stop = start + length
        if stop > end:
            raise ValueError(f"an element of {length} bytes at byte {place}, {end - start} are left")
        if kind == b"SQ" and self.explicit and length:
            self._items(start, stop, depth + 1, fragments=False, open_end=False)
        return tag, start, stop

    def _items(self, place: int, end: int, depth: int, *, fragments: bool, open_end: bool) -> int:
        """Steps over the items of a sequence, or fragments of packed pixels; returns the byte after."""
        if depth > _DEEPEST:
            raise ValueError(f"sequences {_DEEPEST} deep at byte {place}")
        while open_end or place < end:
            tag, length = self._tag(place, end), self._unpack("I", place + 4, end)
            place += 8
            if tag == _SEQUENCE_END and open_end:
                return place
            if tag != _ITEM or (fragments and length == _UNDEFINED):
                raise ValueError(f"no item of a sequence at byte {place - 8}")
            if length != _UNDEFINED and place + length > end:
                raise ValueError(f"an item of {length} bytes at byte {place}, {end - place} are left")
            if fragments:
                place += length
                continue
            if length == _UNDEFINED:
                while self._tag(place, end) != _ITEM_END:
                    place = self.element(place, end, depth)[2]
                place += 8
            else:
                stop = place + length
                while place < stop:
                    place = self.element(place, stop, depth)[2]
        return place

    def _tag(self, place: int, end: int) -> Tag:
        return self._unpack("H", place, end), self._unpack("H", place + 2, end)

    def _unpack(self, kind: str, place: int, end: int) -> int:
        size = struct.calcsize(kind)
        if place + size > end:
            raise ValueError(f"the end at byte {place}")
        return struct.unpack(self.order + kind, self.data[place : place + size])[0]
