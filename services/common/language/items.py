"""A catalogue item in words: the sentences by which it is found and from which it is answered. Pure.

The retriever indexes these sentences, the tuner rehearses reading them, and whoever writes an evaluation file may ask about them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from services.common.events.attributes import Attributes, kind_of
from services.common.events.catalog import CatalogItem
from services.common.events.chat import Passage

_TITLE = re.compile(r"(?P<name>.*\S)\s*\((?P<year>[12][0-9]{3})\)")
_ARTICLE = re.compile(r"(?P<rest>.+), (?P<article>The|A|An)")


def sentences_of(categories: Sequence[str], attributes: Iterable[tuple[str, str]]) -> list[str]:
    """Return a sentence for all categories, then one for each attribute (name, value)."""
    lines = [f"Categories: {', '.join(categories)}."] if categories else []
    for name, value in attributes:
        label = name.replace("_", " ")
        lines.append(f"{label[:1].upper()}{label[1:]}: {value.rstrip('.')}.")
    return lines


def words_of(attributes: Attributes) -> Iterator[tuple[str, str]]:
    """Yield the name and the words of each attribute that has words: a list of numbers has none, and an empty value has none."""
    for name, value in attributes.items():
        if isinstance(value, tuple):
            words = ", ".join(map(str, value)) if kind_of(value) == "texts" else ""
        else:
            words = str(value).lower() if isinstance(value, bool) else str(value)
        if words:
            yield name, words


def passage_of(item: CatalogItem) -> Passage:
    """Return the item as a passage, worded as the retriever words it."""
    return Passage(item.title, " ".join(sentences_of(item.categories, words_of(item.attributes))) or f"{item.title}.")


def spoken_title(title: str) -> str:
    """Return a title as people say it: "Usual Suspects, The (1995)" is "The Usual Suspects"."""
    found = _TITLE.fullmatch(title)
    name = found["name"] if found else title
    article = _ARTICLE.fullmatch(name)
    return f"{article['article']} {article['rest']}" if article else name


def year_of(title: str) -> str:
    """Return the year at the end of a title, empty when it has none."""
    found = _TITLE.fullmatch(title)
    return found["year"] if found else ""
