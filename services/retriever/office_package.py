"""The packages of Office files: a zip of XML parts that point at each other. What is packed is measured before it is unpacked.

XML parts are parsed by expat. A part that declares a document type is refused before its root is reached, so that no entity of a file is
ever expanded; Office files have none (ECMA-376 part 2, 8.4.2).
"""

from __future__ import annotations

import io
import posixpath
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import unquote
from xml.etree.ElementTree import Element, ParseError, iterparse
from xml.parsers import expat

from services.retriever.outline import Unreadable

MAX_PARTS = 10_000
MAX_DEPTH = 256
"""Of elements within each other. Readers may recurse that deep."""

_UNPACKABLE = frozenset((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
_SAVE_ANEW = "copy it again, or open it in the program that wrote it and save it anew"
_CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageLimits:
    """What a package may hold; one over it is refused unread.

    Attributes:
        max_bytes: of all parts, unpacked.
        setting: how an operator changes it.
    """

    max_bytes: int = 128 * 1024 * 1024
    setting: str = "the limit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """One part points at another. `kind`: the last word of the relationship's type, e.g. "slide"; `part`: a path inside the package."""

    kind: str
    part: str


class _Root(Exception):
    """The root element is reached: there was no document type."""


class Package:
    """The parts of one file, by their paths."""

    def __init__(self, raw: bytes, limits: PackageLimits) -> None:
        """Look at the list of parts; nothing is unpacked.

        Raises:
            Unreadable: damaged, encrypted, or it would unpack to more than the limits.
        """
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(raw))
        except (zipfile.BadZipFile, ValueError, NotImplementedError, UnicodeDecodeError) as error:
            raise Unreadable(f"it is damaged: {error}; {_SAVE_ANEW}") from error
        parts = self._zip.infolist()
        if len(parts) > MAX_PARTS:
            raise Unreadable(f"it has {len(parts)} parts; at most {MAX_PARTS} are read; split it")
        # zipfile gives no more bytes of a part than are stated here, whatever it would unpack to.
        size = sum(part.file_size for part in parts)
        if size > limits.max_bytes:
            most = f"at most {limits.max_bytes // 2**20} MiB are read"
            raise Unreadable(f"it would unpack to {size // 2**20} MiB; {most}; split it, or raise {limits.setting}")
        if any(part.flag_bits & 1 for part in parts):
            raise Unreadable("it is encrypted: save it without a password")
        self._parts = {part.filename: part for part in parts}

    def __contains__(self, part: str) -> bool:
        """Say whether there is such a part."""
        return part in self._parts

    def main_part(self) -> str:
        """Return the path of the part that the others hang on.

        Raises:
            Unreadable: there is none.
        """
        for relation in self.relations("").values():
            if relation.kind == "officeDocument" and relation.part in self._parts:
                return relation.part
        raise Unreadable(f"it is damaged: no part of it is the document; {_SAVE_ANEW}")

    def relations(self, part: str) -> dict[str, Relation]:
        """Return id -> relation of what a part points at inside the package; of the package itself for an empty path.

        Raises:
            Unreadable: damaged.
        """
        folder, name = posixpath.split(part)
        path = posixpath.join(folder, "_rels", f"{name}.rels")
        if path not in self._parts:
            return {}
        found: dict[str, Relation] = {}
        for element in self.tree(path):
            target = element.get("Target", "")
            if element.get("TargetMode") == "External" or not target:
                continue
            # A target that begins with a slash starts at the package; a fragment names a place inside a part.
            joined = posixpath.normpath(posixpath.join("/", folder, unquote(target.partition("#")[0])))
            kind = element.get("Type", "").rpartition("/")[2]
            found[element.get("Id", "")] = Relation(kind=kind, part=joined.lstrip("/"))
        return found

    def tree(self, part: str) -> Element:
        """Return the root of an XML part.

        Raises:
            Unreadable: damaged, nested too deeply, or it declares a document type.
        """
        root: Element | None = None
        for is_start, _, element in self._events(part):
            root = element if root is None and is_start else root
        assert root is not None  # expat refuses a document without an element
        return root

    def children(self, part: str, *parents: str) -> Iterator[Element]:
        """Yield the elements right below each element of these names, one after the other; what was yielded is then forgotten.

        Args:
            part: of XML.
            parents: local names, of the root or of what is right below it. Further down other vocabularies use the same names: the sections
                of a presentation have a `sldIdLst` of their own.
        Raises:
            Unreadable: see `tree`.
        """
        holder: Element | None = None
        inside = 0
        for is_start, depth, element in self._events(part):
            if is_start:
                if holder is None and depth <= 2 and local(element) in parents:
                    holder, inside = element, depth
            elif holder is not None and depth == inside + 1:
                yield element
                holder.clear()
            elif element is holder:
                holder = None

    def _events(self, part: str) -> Iterator[tuple[bool, int, Element]]:
        """Yield (starts, depth, element): the root's depth is 1."""
        data = self._unpacked(part)
        depth = 0
        try:
            _refuse_document_type(part, data)
            for event, element in iterparse(io.BytesIO(data), ("start", "end")):
                depth += event == "start"
                if depth > MAX_DEPTH:
                    raise Unreadable(f"its part {part} is nested too deeply: more than {MAX_DEPTH} elements within each other")
                yield event == "start", depth, element
                depth -= event == "end"
        except (ParseError, expat.ExpatError, LookupError) as error:
            raise Unreadable(f"it is damaged: its part {part} is no XML ({error}); {_SAVE_ANEW}") from error

    def _unpacked(self, part: str) -> bytes:
        info = self._parts.get(part)
        if info is None:
            raise Unreadable(f"it is damaged: its part {part} is missing; {_SAVE_ANEW}")
        if info.compress_type not in _UNPACKABLE:
            raise Unreadable(f"its part {part} is packed in a way that Office does not use (method {info.compress_type}); save it anew")
        try:
            return self._zip.read(info)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise Unreadable(f"it is damaged: its part {part} cannot be unpacked ({error}); {_SAVE_ANEW}") from error


def _refuse_document_type(part: str, data: bytes) -> None:
    """Parse up to the root element, in whatever encoding the part is.

    Raises:
        Unreadable: a document type was declared.
        expat.ExpatError: no XML.
    """
    parser = expat.ParserCreate()

    def declared(*_: object) -> None:
        raise Unreadable(f"its part {part} declares a document type, which no Office file does: it is not read; save it anew")

    def reached(*_: object) -> None:
        raise _Root

    parser.StartDoctypeDeclHandler = declared
    parser.StartElementHandler = reached
    try:
        for start in range(0, len(data), _CHUNK_BYTES):
            parser.Parse(data[start : start + _CHUNK_BYTES])
        parser.Parse(b"", True)
    except _Root:
        return


def local(element: Element) -> str:
    """Return an element's name without its namespace: the strict and the transitional form of the formats differ in that alone."""
    return element.tag.rpartition("}")[2]


def value_of(element: Element, name: str) -> str | None:
    """Return the attribute of that local name, in whatever namespace."""
    if name in element.attrib:
        return element.attrib[name]
    ending = f"}}{name}"
    return next((value for key, value in element.attrib.items() if key.endswith(ending)), None)


def relation_of(element: Element) -> str:
    """Return the id of the relation that an element names; empty when it names none. An `id` without a namespace is a number."""
    return next((value for key, value in element.attrib.items() if key.startswith("{") and key.endswith("}id")), "")


def child(element: Element | None, *path: str) -> Element | None:
    """Return the first element along a path of local names below the element."""
    for name in path:
        if element is None:
            return None
        element = next((below for below in element if local(below) == name), None)
    return element


def is_on(element: Element | None) -> bool:
    """Say whether a switch is there and is not set to off."""
    return element is not None and (value_of(element, "val") or "true") not in ("0", "false", "off", "none")
