"""When an answer is right: it says what it must, in one of the accepted wordings, and nothing that it must not. Pure.

"Says" means: the words stand there as words of their script (`words.py`), outside of questions and of repetitions of what was asked,
and are not denied ("No, nine days is wrong": `negation.py`). There is no dictionary: 京都 is found in 东京都, and an evaluation file that
asks for the one rejects the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from services.common.language.negation import is_denied
from services.common.language.words import CLAUSE_END, QUESTION_MARK, SENTENCE_END, SIGN, WORD, Token, hangul_stem_in, tokens_of, words_of

# A part of the question that is as long as that is a repetition, also without its question mark.
_MIN_REPEATED_WORDS = 4
_ASKING_ENDS = (("か",), ("吗",), ("嗎",), ("呢",), ("ไหม",))


def is_right(answer: str, accept: Sequence[Sequence[str]], reject: Sequence[str] = (), *, question: str = "") -> bool:
    """Say whether the answer states one wording of each group of `accept` and none of `reject`; case and punctuation do not matter.

    Args:
        answer: what was said.
        accept: each group is one thing that must be said, in any of its wordings.
        reject: what must not be said.
        question: what was asked; repeating it states nothing.
    """
    said = _Answer(answer, question)
    return all(any(said.states(wording) for wording in group) for group in accept) and not any(said.states(wording) for wording in reject)


class _Answer:
    """An answer's tokens, with the clause and the sentence of each, and which of them state anything."""

    def __init__(self, answer: str, question: str) -> None:
        self._tokens: list[Token] = []
        self._clauses: list[int] = []
        self._asks: list[bool] = []
        asked = words_of(question)
        for number, (clause, is_stated) in enumerate(_clauses_of(tokens_of(answer), asked)):
            self._tokens += clause
            self._clauses += [number] * len(clause)
            self._asks += [not is_stated] * len(clause)
        # Signs between words are passed over unless the wording has them.
        self._words = [index for index, token in enumerate(self._tokens) if token.kind == WORD]
        self._all = list(range(len(self._tokens)))

    def states(self, wording: str) -> bool:
        """Say whether the wording stands somewhere where it is stated."""
        wanted = [token for token in tokens_of(wording) if token.kind in (WORD, SIGN)]
        places = self._all if any(token.kind == SIGN for token in wanted) else self._words
        return any(self._is_stated(*found) for found in self._found(wanted, places))

    def _found(self, wanted: Sequence[Token], places: Sequence[int]) -> Iterator[tuple[int, int, str]]:
        """Yield the index of the first and of the last token of each occurrence, and a Korean word's ending."""
        if not wanted:
            return
        for start in range(len(places) - len(wanted) + 1):
            here = places[start : start + len(wanted)]
            if all(self._tokens[place].text == token.text for place, token in zip(here[:-1], wanted[:-1], strict=True)):
                last, stem = self._tokens[here[-1]].text, wanted[-1]
                if last == stem.text:
                    yield here[0], here[-1], ""
                elif stem.is_hangul and hangul_stem_in(stem.text, last):
                    yield here[0], here[-1], last[len(stem.text) :]

    def _is_stated(self, first: int, last: int, ending: str) -> bool:
        if any(self._asks[first : last + 1]):
            return False
        before = [token for index, token in enumerate(self._tokens[:first]) if self._clauses[index] == self._clauses[first]]
        after = [token for index, token in enumerate(self._tokens[last + 1 :], last + 1) if self._clauses[index] == self._clauses[last]]
        behind = _written(after)
        return not is_denied(_written(before), f"{ending} {behind}".strip() if ending else behind)


def _clauses_of(tokens: Sequence[Token], asked: tuple[str, ...]) -> Iterator[tuple[list[Token], bool]]:
    """Yield each clause's words and signs, and whether its sentence states anything: it is no question and repeats none."""
    sentence: list[list[Token]] = [[]]
    for token in [*tokens, Token("", SENTENCE_END, joined=True)]:
        if token.kind == CLAUSE_END:
            sentence.append([])
        elif token.kind in (SENTENCE_END, QUESTION_MARK):
            words = tuple(word.text for clause in sentence for word in clause if word.kind == WORD)
            is_stated = token.kind == SENTENCE_END and not _asks(words) and not _repeats(words, asked)
            yield from ((clause, is_stated) for clause in sentence if clause)
            sentence = [[]]
        else:
            sentence[-1].append(token)


def _asks(words: tuple[str, ...]) -> bool:
    return any(words[-len(end) :] == end for end in _ASKING_ENDS)


def _repeats(words: tuple[str, ...], asked: tuple[str, ...]) -> bool:
    """Whether a sentence is what was asked, or the greater part of it, word for word."""
    if words and words == asked:
        return True
    if len(words) < max(_MIN_REPEATED_WORDS, len(asked) // 2 + 1):
        return False
    return any(asked[start : start + len(words)] == words for start in range(len(asked) - len(words) + 1))


def _written(tokens: Sequence[Token]) -> str:
    """The words of a clause as one text, with blanks only where their scripts have them."""
    text = ""
    was_joined = True
    for token in tokens:
        text += token.text if token.joined and was_joined else f" {token.text}"
        was_joined = token.joined
    return text.strip()
