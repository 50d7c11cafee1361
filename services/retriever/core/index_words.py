"""What passages and queries are matched by: words of any script, and whatever a person may paste to find its own document. Pure.

A passage becomes a line of index words between blanks, a query the same; BM25 compares them and knows no language. The words of a text:

    word            each word of a script with blanks, in lower case (stemming and the folding of accents are the index's)
    C++, node.js    a name with signs is one index word, and so is each part of it
    九天            pairs of neighbouring characters of Han, kana, Hangul and Thai: no dictionary has to know them; single Han as well
    バス            a run of Katakana is one more
    =5d2c01…        a title, a heading or a file's name, whole, as a hash: a title of words that every text has is found, too

Raise FORMAT when the same text gives other index words: an index of before is then made anew.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator

from services.common.language.words import WORD, Token, tokens_of

FORMAT = 2

MAX_QUERY_WORDS = 256
"""A query of more asks for the first of them: what a person pastes is found by less."""

# With so many words or fewer every word counts: "The Who", "To be or not to be".
_SHORT_QUERY = 6
_MAX_TITLE_WORDS = 24
_PARTS = re.compile(r"[^\W_]+")
_HAN = re.compile(r"[\u3005-\u3007\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_KATAKANA = re.compile(r"[\u30a1-\u30ff]+")
_YEAR_AT_END = re.compile(r"\s*\([^()]*\)\s*$")
_ARTICLE_AT_END = re.compile(r"(?P<rest>.+), (?P<article>The|A|An|Le|La|Les|L'|Der|Die|Das|El|Los|Las|Il)", re.IGNORECASE)
_HEADINGS = " > "
_STOP_WORDS = frozenset(
    [
        *("a", "an", "and", "are", "as", "at", "be", "been", "but", "by", "can", "could", "did", "do", "does", "for", "from", "had", "has"),
        *(
            "have",
            "how",
            "i",
            "if",
            "in",
            "into",
            "is",
            "it",
            "its",
            "may",
            "me",
            "might",
            "my",
            "no",
            "not",
            "of",
            "on",
            "or",
            "our",
            "should",
        ),
        *(
            "so",
            "such",
            "than",
            "that",
            "the",
            "their",
            "then",
            "there",
            "these",
            "they",
            "this",
            "to",
            "was",
            "we",
            "were",
            "what",
            "when",
        ),
        *("where", "which", "who", "why", "will", "with", "would", "you", "your"),
    ]
)


def words_of_passage(document_id: str, title: str, text: str) -> str:
    """Return the index words of a passage. `title` may be a path of headings, "Returns > Late fees"."""
    words = [*_words(tokens_of(title)), *_words(tokens_of(text))]
    return " ".join([*words, *dict.fromkeys(_names(document_id, title))])


def words_of_query(query: str) -> str:
    """Return the index words that a query asks for, each once; empty when it has none."""
    tokens = tokens_of(query)
    spoken = [token for token in tokens if token.kind == WORD]
    if len(spoken) > _SHORT_QUERY:
        tokens = [token for token in tokens if token.text not in _STOP_WORDS] or tokens
    words = [*_words(tokens, is_query=True), _whole(query)]
    return " ".join(word for word in list(dict.fromkeys(words))[:MAX_QUERY_WORDS] if word)


def _words(tokens: Iterable[Token], *, is_query: bool = False) -> Iterator[str]:
    run: list[str] = []
    for token in [*tokens, Token("", WORD, joined=False)]:
        if token.kind == WORD and token.joined:
            run.extend(token.text if _HAN.match(token.text) or _KATAKANA.match(token.text) else (token.text,))
            if _KATAKANA.fullmatch(token.text) and len(token.text) > 2:
                yield token.text
            continue
        yield from _pairs(run, is_query=is_query)
        run = []
        if token.kind == WORD and token.text:
            yield from _spaced(token, is_query=is_query)
    yield from _pairs(run, is_query=is_query)


def _pairs(run: list[str], *, is_query: bool) -> Iterator[str]:
    """Neighbours of a run, two by two. Single characters are asked for only where there is no pair."""
    yield from (first + second for first, second in itertools.pairwise(run))
    if len(run) == 1:
        yield run[0]
    elif not is_query:
        yield from (char for char in run if _HAN.match(char))


def _spaced(token: Token, *, is_query: bool) -> Iterator[str]:
    if token.is_hangul:
        if len(token.text) > 2:
            yield token.text  # an ending makes it another word, of which the pairs of its stem are left
        yield from _pairs(list(token.text), is_query=is_query)
        return
    yield token.text
    parts = _PARTS.findall(token.text)
    if parts != [token.text]:
        yield from parts


def _names(document_id: str, title: str) -> Iterator[str]:
    """What the document is called by: title and headings, also without "(1995)" and with the article in front; its id, its file."""
    for name in (title, *title.split(_HEADINGS)):
        bare = _YEAR_AT_END.sub("", name)
        turned = _ARTICLE_AT_END.fullmatch(bare)
        for form in (name, bare, f"{turned['article']} {turned['rest']}" if turned else ""):
            whole = _whole(form)
            if whole:
                yield whole
    for name in (document_id, document_id.rsplit("/", 1)[-1]):
        whole = _whole(name)
        if whole:
            yield whole


def _whole(name: str) -> str:
    words = [token.text for token in tokens_of(name) if token.kind == WORD]
    if not 0 < len(words) <= _MAX_TITLE_WORDS:
        return ""
    return f"={hashlib.blake2b(' '.join(words).encode(), digest_size=8).hexdigest()}"
