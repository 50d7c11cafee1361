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

_MAX_TITLE_WORDS = 24
_PARTS = re.compile(r"[^\W_]+")
_HAN = re.compile(r"[\u3005-\u3007\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_KATAKANA = re.compile(r"[\u30a1-\u30ff]+")
_YEAR_AT_END = re.compile(r"\s*\([^()]*\)\s*$")
_ARTICLE_AT_END = re.compile(r"(?P<rest>.+), (?P<article>The|A|An|Le|La|Les|L'|Der|Die|Das|El|Los|Las|Il)", re.IGNORECASE)
_HEADINGS = " > "
# What questions are made of. A query leaves them out as long as it has other words; the index has them all.
_ENGLISH = """
    i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she her hers herself it its itself they them
    their theirs themselves what which who whom whose this that these those am is are was were be been being have has had having do does did
    doing would should could ought can will may might must a an the and but if or because as until while of at by for with about against
    between into through during before after above below to from up down in out on off over under again further then once here there when
    where why how all any both each few more most other some such no nor not only own same so than too very dont cant isnt doesnt didnt wont
"""
_CHINESE = "的了吗嗎呢么麼什怎你您妳我他她它们們这這那是吧啊哪些何与與或被把让讓"
_JAPANESE = """
    です すか ます した まし ませ せん ない たい てい いる いま ある あり りま れる られ する には では とは から まで より
    こと もの よう どう うす なに どこ どれ いつ のは のが のを でき きま ので って んで
"""
_FUNCTION_WORDS = frozenset((*_ENGLISH.split(), *_JAPANESE.split(), *_CHINESE))


def words_of_passage(document_id: str, title: str, text: str) -> str:
    """Return the index words of a passage. `title` may be a path of headings, "Returns > Late fees"."""
    words = [*_words(tokens_of(title)), *_words(tokens_of(text))]
    return " ".join([*words, *dict.fromkeys(_names(document_id, title))])


def words_of_query(query: str) -> str:
    """Return the index words that a query asks for, each once; empty when it has none."""
    words = list(dict.fromkeys(_words(tokens_of(query), is_query=True)))
    asked = [word for word in words if not _is_function_word(word)] or words
    return " ".join([*asked[:MAX_QUERY_WORDS], *filter(None, (_whole(query),))])


def _is_function_word(word: str) -> bool:
    return word in _FUNCTION_WORDS or (len(word) == 2 and not word.isascii() and (word[0] in _CHINESE or word[1] in _CHINESE))


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
