"""Whether a clause says something or denies it, by the words around it: rules for ten languages. Pure.

"nine days is wrong", "nicht neun Tage", "不是九天" deny; "not longer than nine days", "nicht später als neun Tage", "不超过九天" do not.
Rules of words cannot know all: a denial that they miss counts as said, and what only sounds like one may count as denied.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _Rule:
    """One way in which a language denies.

    Attributes:
        before: at the end of what stands before the words; None: this rule looks behind them. Its group `gap` is what stands between.
        after: at the beginning of what stands behind them.
        unless: found in the gap (or in what the rule's `after` found), it is no denial: a comparison, a condition.
        unless_before: found anywhere before, it is no denial.
    """

    before: re.Pattern[str] | None = None
    after: re.Pattern[str] | None = None
    unless: re.Pattern[str] | None = None
    unless_before: re.Pattern[str] | None = None


def is_denied(before: str, after: str) -> bool:
    """Say whether the words between `before` and `after`, which are the rest of their clause, are denied.

    Args:
        before: folded words, a blank between two of a script that has blanks; none at the ends.
        after: the same.
    """
    return any(_denies(rule, before, after) for rule in _RULES)


def _denies(rule: _Rule, before: str, after: str) -> bool:
    if rule.unless_before is not None and rule.unless_before.search(before):
        return False
    if rule.before is not None:
        found, gap = rule.before.search(before), "gap"
    elif rule.after is not None:
        found, gap = rule.after.search(after), "gap"
    else:
        return False
    return found is not None and (rule.unless is None or not rule.unless.search(found[gap]))


def _spaced(words: str, max_gap: int) -> re.Pattern[str]:
    """One of the words, then at most so many others, then the end."""
    return re.compile(rf"(?:^| )(?:{words})(?P<gap>(?: [^ ]+){{0,{max_gap}}})$")


def _whole(words: str) -> re.Pattern[str]:
    return re.compile(rf"(?:^| )(?:{words})(?: |$)")


def _unspaced(words: str, max_gap: int) -> re.Pattern[str]:
    return re.compile(rf"(?:{words})(?P<gap>.{{0,{max_gap}}})$")


def _follows(words: str) -> re.Pattern[str]:
    """At the beginning of what stands behind."""
    return re.compile(rf"^(?P<gap>(?:{words})(?: |$))")


_IF_EN = _whole("if|unless|when|whenever|because|since|once|who|whoever|which")
_MORE_EN = _whole(
    "more|longer|later|over|beyond|exceeds?|exceeding|above|only|just|until|till|but|forget|hesitate|worry|matter|problem|doubt|after|past|before|"
    "less|fewer|earlier|sooner|due|merely|simply|because|to be"
)
_NOT_EN = (
    "not|never|nor|neither|isnt|arent|wasnt|werent|dont|doesnt|didnt|cant|cannot|couldnt|wont|wouldnt|shouldnt|mustnt|hasnt|havent|hadnt|aint|"
    "instead of|rather than|wrong|incorrect|false|untrue|mistake|unlike|except|except for|excluding|nobody|nothing"
)
_WRONG_EN = "wrong|incorrect|false|untrue|mistaken|inaccurate|a mistake|an error|a lie|a myth|a rumou?r|no answer"
_RIGHT_EN = "right|correct|true|accurate|the case|allowed|the answer|what|possible"
_IS_EN = "is|are|was|were|be|would be|sounds|seems"
_ENGLISH = (
    _Rule(before=_spaced(_NOT_EN, 5), unless=_MORE_EN, unless_before=_IF_EN),
    _Rule(before=_spaced("no|without", 2), unless=_MORE_EN, unless_before=_IF_EN),
    _Rule(
        after=_follows(
            rf"(?:[^ ]+ ){{0,3}}?(?:(?:{_IS_EN}) (?:[^ ]+ )?(?:{_WRONG_EN}|not (?:[^ ]+ )?(?:{_RIGHT_EN}))"
            rf"|(?:isnt|arent|wasnt|werent) (?:[^ ]+ )?(?:{_RIGHT_EN}))"
        )
    ),
)

_GERMAN = (
    _Rule(
        before=_spaced("nicht|kein|keine|keinen|keinem|keiner|keineswegs|niemals|nie|weder|noch|ohne|statt|anstatt|falsch", 4),
        unless=_whole(
            "länger|mehr|später|über|nur|als|weniger|früher|vor|bis|sondern|aber|vergessen|bloß|lediglich|nach|eher|spätestens|mindestens"
        ),
        unless_before=_whole("wenn|falls|sobald|wer|weil"),
    ),
    _Rule(
        after=_follows(
            r"(?:[^ ]+ ){0,3}?(?:ist|sind|war|waren|wäre|wären|stimmt|stimmen) (?:[^ ]+ )?(?:falsch|unwahr|ein irrtum"
            r"|nicht(?: richtig| korrekt| wahr| erlaubt| möglich| der fall| die antwort)?(?= |$))"
        )
    ),
)

# French, Spanish, Italian and Portuguese.
_IF_ROMANCE = _whole("si|cuando|quand|quando|se")
_ROMANCE = (
    _Rule(
        before=_spaced("pas|jamais|ni|sans|nunca|tampoco|sin|mai|né|senza|nem|sem|não|faux", 3),
        unless=_whole(
            "plus|más|più|mais|que|menos|moins|meno|después|après|dopo|depois|solo|sólo|seulement|but|mas|avant|antes|prima|delà"
        ),
        unless_before=_IF_ROMANCE,
    ),
    _Rule(before=_spaced("no|non", 2), unless=_whole("más|più|plus|later|more|longer|menos|solo|sólo"), unless_before=_IF_ROMANCE),
    _Rule(
        after=_follows(
            r"(?:[^ ]+ ){0,2}?(?:est|sont|es|son|è|sono|é|são) (?:[^ ]+ )?(?:fau(?:x|sse)|incorrect[eo]?|fals[oa]|sbagliato|errado)"
        )
    ),
    _Rule(
        after=_follows(
            r"(?:[^ ]+ ){0,2}?(?:n est pas|ne sont pas|no es|no son|non è|non sono|não é|não são) (?:[^ ]+ )?"
            r"(?:correct[aeo]?s?|juste|vrai|exact|possible|cierto|verdad|posible|giusto|vero|certo|verdade|bonne|respuesta|réponse)"
        )
    ),
)

# Russian and Ukrainian.
_SLAVIC = (
    _Rule(
        before=_spaced("не|ни|нет|без|нельзя|никогда|неверно|неправда|кроме|ні|немає|неправильно", 4),
        unless=_whole(
            "более|больше|дольше|позже|позднее|только|менее|меньше|раньше|а|но|свыше|забудьте|превышает|лише|пізніше|довше|більше"
        ),
        unless_before=_whole("если|когда|якщо|коли"),
    ),
    _Rule(after=_follows(r"(?:[^ ]+ ){0,2}?(?:неверно|неправильно|неправда|ошибка|ложь|не верно|не правильно|не так|нельзя)")),
)

_IF_ZH = re.compile("如果|若|要是|假如|倘")
_CHINESE = (
    _Rule(
        before=_unspaced(
            "不是|并非|並非|并不是|並不是|绝非|絕非|不能|不可以|不可|没有|沒有|无法|無法|不对|不對|而非|不该|不該|不应|不應|禁止|除了|不得|不会|不會|错的|錯的",
            6,
        ),
        unless=re.compile(
            "超|多[于於]|晚[于於]|迟|遲|早[于於]|少[于於]|[高低大小][于於]|只|仅|僅|但|而是|忘|用|必|论|論|管|满|滿|过|過|就|后|後"
        ),
        unless_before=_IF_ZH,
    ),
    _Rule(
        before=re.compile("(?:(?<!差)不(?![过過错錯同仅僅只到满滿用必论論管超多晚迟遲少早得足])|非(?!常)|别(?!忘))(?P<gap>.{0,1})$"),
        unless_before=_IF_ZH,
    ),
    _Rule(
        after=re.compile("^(?P<gap>.{0,4}?(?:错|錯|不对|不對|不正确|不正確|不是|不行|有误|有誤|不可以|不可能|是假))"),
        unless=re.compile("后|後|内|內|以上|之外|错过|錯過|就"),
    ),
)

# What denies stands at the end of the clause, as in Korean.
_JAPANESE = (
    _Rule(
        after=re.compile(
            "^(?P<gap>.{0,14}?(?:では?ありません|じゃありません|では?ない|じゃない|では?なく|じゃなく|ではなかった|ません|間違|誤り|違い|違う"
            "|できない|いけない|だめ|ダメ|嘘|不正解).{0,3})"
        ),
        unless=re.compile(
            "超え|より|以上|しか|以内|なければ|ないと|なくて|だけ|のみ|必ず|忘れ|過ぎ|後|問題|心配|構い|かまい|ませんか|間違いな"
        ),
    ),
)
_KOREAN = (
    _Rule(
        after=re.compile("^(?P<gap>.{0,12}?(?:아닙니다|아니|아닌|아냐|틀렸|틀린|틀립|안 ?됩|안 ?돼|없습니다|못))"),
        unless=re.compile("넘|이상|초과|밖에|만|않으면|까지만|이후|지나"),
    ),
)
_THAI = (
    _Rule(
        before=_unspaced("ไม่ใช่|มิใช่|ไม่ได้|ไม่สามารถ|ไม่|ห้าม|ผิดที่", 24),
        unless=re.compile("เกิน|เพียง|แค่|น้อยกว่า|มากกว่า|แต่|ลืม|นานกว่า|หลัง|ต้อง|ช้ากว่า|เร็วกว่า|ก่อน"),
        unless_before=re.compile("ถ้า|หาก|เมื่อ"),
    ),
    _Rule(after=re.compile("^(?P<gap>.{0,16}?(?:ผิด|ไม่ถูก|ไม่ใช่|ไม่จริง))"), unless=re.compile("หลัง|เกิน|ถ้า|หาก")),
)

_RULES = (*_ENGLISH, *_GERMAN, *_ROMANCE, *_SLAVIC, *_CHINESE, *_JAPANESE, *_KOREAN, *_THAI)
