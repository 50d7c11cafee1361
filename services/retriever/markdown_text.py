"""Markdown -> HTML (cmark-gfm) -> sections.

HTML inside Markdown is a part of its own: an element that a block opens ends with the block, so that "the <nav> element" hides nothing
of what follows. cmark-gfm leaves raw HTML out where it is not told to trust it; what stands in its blocks is taken from a second rendering
that has it, and put in balanced.
"""

from __future__ import annotations

import re

from cmarkgfm import markdown_to_html_with_extensions
from cmarkgfm.cmark import Options
from selectolax.lexbor import LexborHTMLParser

from services.retriever.html_text import DROPPED, Style, read_html
from services.retriever.outline import Extracted

_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n(?:---|\.\.\.)\s*\n", re.DOTALL)
_FRONT_TITLE = re.compile(r"^title:(.*)$", re.MULTILINE)
_OMITTED = "<!-- raw HTML omitted -->"
_OMITTED_BLOCK = re.compile(rf"(?:^|\n){_OMITTED}\n")
_RENDERED = re.compile(r'<([a-z0-9]+) data-sourcepos="[\d:-]+"')
_LEAVES = frozenset(("p", "h1", "h2", "h3", "h4", "h5", "h6", "pre", "td", "th"))
_END_TAG = re.compile(r"</[a-z0-9]+>")
# Before these a line break says nothing; text and code have no "<" of their own.
_BROKEN_BEFORE = (
    "<p>",
    "<li>",
    "</li>",
    "<ul>",
    "</ul>",
    "<ol",
    "</ol>",
    "<tr",
    "</tr",
    "<td",
    "<th",
    "</th",
    "<tb",
    "</tb",
    "<table",
    "</table",
    "<h",
    "<pre",
    "<bl",
    "</bl",
)
# An element of this name has no end.
_ENDLESS = "plaintext"
_STYLE = Style(gap="", has_descriptions=True)


def read_markdown(text: str) -> Extracted:
    """Return the title (of the front matter, or the first heading) and the sections of a Markdown document.

    Raises:
        Unreadable: nested too deeply, or too much text.
    """
    text = text.replace("\r\n", "\n")
    title = ""
    front = _FRONT_MATTER.match(text)
    if front is not None:
        named = _FRONT_TITLE.search(front[1])
        title, text = named[1].strip().strip("\"'") if named is not None else "", text[front.end() :]
    page = _rendered(text, Options.CMARK_OPT_DEFAULT)
    if _OMITTED_BLOCK.search(page):
        page = _with_html_blocks(
            _rendered(text, Options.CMARK_OPT_SOURCEPOS), _rendered(text, Options.CMARK_OPT_SOURCEPOS | Options.CMARK_OPT_UNSAFE)
        )
    for tag in _BROKEN_BEFORE:  # these line breaks are half of what a parser would have to keep
        page = page.replace(f"\n{tag}", tag)
    return read_html(page, _STYLE, title)


def _rendered(text: str, options: int) -> str:
    return str(markdown_to_html_with_extensions(text, options=options, extensions=["table"]))


def _with_html_blocks(page: str, trusting: str) -> str:
    """Return the page with the blocks of HTML of the other rendering; both name the place of each element that Markdown makes."""
    parts: list[str] = []
    elements = list(_RENDERED.finditer(page))
    position = 0
    for element, following in zip([None, *elements], [*elements, None], strict=True):
        start = element.start() if element is not None else 0
        end, other_end = len(page), len(trusting)
        if following is not None:
            end, other_end = following.start(), trusting.find(following[0], position + (element is not None))
            if other_end < 0:  # the document's own HTML writes such names of places
                return page
        part = _filled(page[start:end], trusting[position:other_end], element[1] if element is not None else "")
        # A parser would keep what the names of places say, which takes more memory than the text.
        parts.append(part if element is None else f"<{element[1]}{part[len(element[0]) :]}")
        position = other_end
    return "".join(parts)


def _filled(part: str, trusting: str, tag: str) -> str:
    """Return what one element says up to the next one, its blocks of HTML put in.

    Args:
        part: as rendered without HTML.
        trusting: the same part, with it.
        tag: of the element; empty before the first one.
    """
    # A paragraph may have HTML inside, which is left out, and blocks after its end; what a list's item says itself is in its part, too.
    begin = f"</{tag}>" if tag in _LEAVES else ">" if tag else ""
    start, other = (text.find(begin) + len(begin) for text in (part, trusting))
    omitted = _OMITTED_BLOCK.search(part, start)
    if omitted is None:
        return part
    tree = LexborHTMLParser(trusting[other:])
    tree.strip_tags([*DROPPED, _ENDLESS], recursive=True)
    inner = tree.body.inner_html if tree.body is not None else ""
    before, after = ("".join(_END_TAG.findall(part, *span)) for span in ((start, omitted.start()), (omitted.end(),)))
    return f"{part[:start]}{before}<div>{inner}</div>{after}"
