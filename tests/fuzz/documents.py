"""Damaged documents, handed to the reader of the retriever's files."""

from __future__ import annotations

from collections import Counter

from services.retriever.extract import extract
from services.retriever.outline import Unreadable
from tests.fuzzing import Damage

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
