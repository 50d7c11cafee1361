"""In which words replay asks about a catalogue: in the language of the task's own demonstrations, and about works or about things. Pure.

Languages without wordings here are asked without any: "NAME: LABEL?" is understood in all of them, and its answer is read from the passage
all the same. A file of examples says it better (`TASK.replay.jsonl` beside the evaluation file).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Wordings:
    """Questions with {name}, {value} and {label}, several of each kind to choose from, and the answers to them.

    Attributes:
        categories, year, attribute: what an item has; which_category, which_year, which_attribute: which item has it.
        has, is_from, in_category, which: the answers, with {name} and {value}.
        comma: between the values of an answer.
    """

    categories: tuple[str, ...]
    year: tuple[str, ...]
    attribute: tuple[str, ...]
    which_category: tuple[str, ...]
    which_year: tuple[str, ...]
    which_attribute: tuple[str, ...]
    has: str = "{name}: {value}."
    is_from: str = "{name}: {value}."
    in_category: str = "{name}."
    which: str = "{name}."
    comma: str = ", "


_NEUTRAL = Wordings(
    categories=("{name}: {label}?",),
    year=("{name}: 1900–2100?",),
    attribute=("{name}: {label}?",),
    which_category=("{label}: {value}?",),
    which_year=("{value}?",),
    which_attribute=("{label}: {value}?",),
)
_ENGLISH_WORKS = Wordings(
    categories=(
        "Which categories does {name} have?",
        "Which genres does {name} belong to?",
        "What kind of title is {name}, by genre?",
        "Tell me the genre of {name}.",
        "Under which categories do you list {name}?",
    ),
    year=(
        "From which year is {name}?",
        "When did {name} come out?",
        "What year was {name} released?",
        "How old is {name}, which year is it from?",
    ),
    attribute=("What is the {label} of {name}?", "Tell me the {label} of {name}.", "Which {label} does {name} have?"),
    which_category=(
        "Which of these is listed under {value}?",
        "Which title has the category {value}?",
        "I want something from {value}. Which one is it?",
    ),
    which_year=("Which of these is from {value}?", "Which title came out in {value}?", "Name the one that is from {value}."),
    which_attribute=("Which of these has the {label} {value}?", "Name the one whose {label} is {value}."),
    is_from="{name} is from {value}.",
    in_category="{name} is listed under {value}.",
)
_ENGLISH = Wordings(
    categories=(
        "Which categories does {name} have?",
        "Under which categories do you list {name}?",
        "What kind of item is {name}?",
        "Tell me the categories of {name}.",
    ),
    year=("From which year is {name}?", "Which year is {name} from?"),
    attribute=_ENGLISH_WORKS.attribute,
    which_category=("Which of these is listed under {value}?", "I want something from {value}. Which one is it?"),
    which_year=("Which of these is from {value}?", "Name the one that is from {value}."),
    which_attribute=_ENGLISH_WORKS.which_attribute,
    is_from="{name} is from {value}.",
    in_category="{name} is listed under {value}.",
)
_GERMAN = Wordings(
    categories=("Zu welchen Kategorien gehört {name}?", "Unter welchen Kategorien steht {name}?", "Nenne die Kategorien von {name}."),
    year=("Aus welchem Jahr ist {name}?", "Von wann ist {name}?"),
    attribute=("Was steht bei {name} unter {label}?", "Wie lautet {label} von {name}?"),
    which_category=("Was davon steht unter {value}?", "Ich suche etwas aus {value}. Was passt?"),
    which_year=("Was davon ist aus dem Jahr {value}?", "Nenne das, was von {value} ist."),
    which_attribute=("Was davon hat bei {label} den Eintrag {value}?",),
    is_from="{name} ist von {value}.",
)
_FRENCH = Wordings(
    categories=("À quelles catégories appartient {name} ?", "Dans quelles catégories se trouve {name} ?"),
    year=("De quelle année date {name} ?", "De quand date {name} ?"),
    attribute=("Que dit la fiche de {name} pour {label} ?", "Quel est {label} de {name} ?"),
    which_category=("Lequel de ceux-ci est classé dans {value} ?", "Je cherche quelque chose dans {value}. Lequel est-ce ?"),
    which_year=("Lequel de ceux-ci date de {value} ?",),
    which_attribute=("Lequel de ceux-ci a pour {label} {value} ?",),
    has="{name} : {value}.",
    is_from="{name} date de {value}.",
)
_SPANISH = Wordings(
    categories=("¿A qué categorías pertenece {name}?", "¿En qué categorías está {name}?"),
    year=("¿De qué año es {name}?", "¿De cuándo es {name}?"),
    attribute=("¿Qué dice la ficha de {name} sobre {label}?", "¿Cuál es {label} de {name}?"),
    which_category=("¿Cuál de estos está en {value}?", "Busco algo de {value}. ¿Cuál es?"),
    which_year=("¿Cuál de estos es de {value}?",),
    which_attribute=("¿Cuál de estos tiene {label} {value}?",),
    is_from="{name} es de {value}.",
)
_CHINESE = Wordings(
    categories=("{name}属于哪些类别？", "{name}在什么类别下？", "请说出{name}的类别。"),
    year=("{name}是哪一年的？", "{name}是什么时候的？"),
    attribute=("{name}的{label}是什么？", "请告诉我{name}的{label}。"),
    which_category=("以下哪一个属于{value}？", "我想要{value}类的，是哪一个？"),
    which_year=("以下哪一个是{value}年的？",),
    which_attribute=("以下哪一个的{label}是{value}？",),
    has="{name}：{value}。",
    is_from="{name}是{value}年的。",
    in_category="{name}。",
    which="{name}。",
    comma="、",
)
_JAPANESE = Wordings(
    categories=("{name}のカテゴリーは何ですか？", "{name}はどのカテゴリーにありますか？"),
    year=("{name}は何年のものですか？",),
    attribute=("{name}の{label}は何ですか？", "{name}の{label}を教えてください。"),
    which_category=("この中で{value}にあるのはどれですか？",),
    which_year=("この中で{value}年のものはどれですか？",),
    which_attribute=("この中で{label}が{value}なのはどれですか？",),
    has="{name}：{value}。",
    is_from="{name}は{value}年のものです。",
    in_category="{name}です。",
    which="{name}です。",
    comma="、",
)
_BY_LANGUAGE = {"en": _ENGLISH, "de": _GERMAN, "fr": _FRENCH, "es": _SPANISH, "zh": _CHINESE, "ja": _JAPANESE}

_SCRIPTS = (
    ("ja", re.compile(r"[\u3040-\u30ff]")),
    ("zh", re.compile(r"[\u3400-\u9fff]")),
    ("other", re.compile(r"[\u0370-\u1fff\u3100-\u318f\uac00-\ud7af]")),
    ("latin", re.compile(r"[a-zA-Z\u00c0-\u024f]")),
)
_WORDS = re.compile(r"[^\W\d_]+")
# Words that are frequent in one language and not in the others.
_COMMON_WORDS = {
    language: frozenset(words.split(" "))
    for language, words in {
        "en": "the is of and to what how my do does can you may where when it for are with",
        "de": "der die das ist und ich wie ein eine nicht zu den mein sie kann wo wann für mit von dem",
        "fr": "le la les est et je un une des que qui pour dans mon vous où quand avec du au ne pas",
        "es": "el los las es y un una que por para mi usted dónde cuándo con del al no cómo puedo en",
    }.items()
}
# A kana among Han says Japanese; every third of the letters is enough.
_KANA_SHARE = 0.1


def language_of(texts: Iterable[str]) -> str:
    """Return "en", "de", "fr", "es", "zh" or "ja", as most of the texts are written; "other" for the rest and for no text."""
    votes = Counter(_language_of_one(text) for text in texts)
    votes.pop("", None)
    # Of equals the first by name, so that the order of the texts plays no part.
    return min(votes, key=lambda language: (-votes[language], language)) if votes else "other"


def wordings_of(language: str, *, of_works: bool) -> Wordings:
    """Return the wordings of a language; `of_works`: whether the catalogue's titles name a year, as those of films and books do."""
    if language == "en" and of_works:
        return _ENGLISH_WORKS
    return _BY_LANGUAGE.get(language, _NEUTRAL)


def _language_of_one(text: str) -> str:
    counts = {script: len(pattern.findall(text)) for script, pattern in _SCRIPTS}
    east = counts["ja"] + counts["zh"]
    if not any(counts.values()):
        return ""
    if 2 * east >= counts["latin"] / 2 and east >= counts["other"] and east:
        return "ja" if counts["ja"] > _KANA_SHARE * east else "zh"
    if counts["other"] > counts["latin"]:
        return "other"
    words = Counter(word.casefold() for word in _WORDS.findall(text))
    found = {language: sum(words[word] for word in common) for language, common in _COMMON_WORDS.items()}
    best = max(found, key=lambda language: (found[language], language))
    return best if found[best] else ""
