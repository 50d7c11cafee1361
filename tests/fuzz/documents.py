"""Damaged documents, handed to the reader of the retriever's files."""

from __future__ import annotations

import functools
import io
import zipfile
from collections import Counter
from collections.abc import Mapping

from services.retriever.extract import extract
from services.retriever.outline import Unreadable
from tests.fuzzing import Damage
from tests.office_files import forty

_PAGE = (
    "<!DOCTYPE html><html><head><title>Fees</title><style>p {color: red}</style></head><body><h1>Rentals</h1><p>Hello <b>there</b>,<br>"
    "you &amp; &#x41;.</p><!-- c --><ul><li>Late: <em>two</em></li></ul><![CDATA[x]]><table><tr><td>a</td></tr></table><?php x ?>"
    "<script>x</script></body></html>"
)
_MARKDOWN = (
    '---\ntitle: "Our fees"\n---\n# Fees\n\nLate: *two* [euros](x "t").\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```py\nx\n```\n\n'
    "> 1. a\n>    - b\n\n<div><p>In <b>HTML</b></p></div>\n\n![i](y)\n\nSetext\n===\n"
)
_DOCUMENTS = {".html": _PAGE.encode(), ".md": _MARKDOWN.encode(), ".txt": "Öre.\n\nTwo\r\nlines.\n".encode()}


def fuzz_documents(count: int, *, seed: int) -> Counter[str]:
    """Hand `count` damaged documents to `extract`; return what became of them."""
    damage = Damage(seed)
    outcomes: Counter[str] = Counter()
    for _ in range(count):
        suffix = damage.random.choice(list(_DOCUMENTS))
        try:
            title, sections = extract(f"a-file{suffix}", damage.of_bytes([_DOCUMENTS[suffix]]))
        except Unreadable:
            outcomes["refused"] += 1
        else:
            assert title
            assert all(paragraph.strip() for section in sections for paragraph in section.paragraphs)
            outcomes["read"] += 1
    return outcomes


def fuzz_office_files(count: int, *, seed: int) -> Counter[str]:
    """Hand `count` packed files, one part of each damaged, to `extract`; return what became of them. Its checksum is right."""
    damage = Damage(seed)
    files = list(_packages().items())
    outcomes: Counter[str] = Counter()
    for _ in range(count):
        name, parts = damage.random.choice(files)
        part = damage.random.choice([part for part in parts if part.endswith((".xml", ".rels"))])
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as package:
            for path, data in parts.items():
                package.writestr(path, damage.of_bytes([data]) if path == part else data)
        try:
            extract(name, buffer.getvalue())
        except Unreadable:
            outcomes["refused"] += 1
        else:
            outcomes["read"] += 1
    return outcomes


@functools.cache
def _packages() -> Mapping[str, Mapping[str, bytes]]:
    """Return name -> path -> part of some office files; a presentation's layouts are never read."""
    packages: dict[str, Mapping[str, bytes]] = {}
    for file in forty():
        if file.name.endswith(("_0.docx", "_1.docx", "_0.pptx", "_0.xlsx", "_1.xlsx")):
            with zipfile.ZipFile(io.BytesIO(file.raw)) as package:
                packages[file.name] = {path: package.read(path) for path in package.namelist() if "Layout" not in path}
    return packages
