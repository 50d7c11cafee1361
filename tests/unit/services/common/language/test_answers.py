"""When an answer is right: tables of answers in nine scripts, each with the wordings that are accepted."""

from collections.abc import Callable

import pytest

from services.common.language.answers import is_right
from tests.processor_time import growth

# answer, one group of accepted wordings parted by "|", whether it is right
LATIN = [
    ("You may keep it for nine days.", "nine days|9 days", True),
    ("You may keep it for ninety-nine days.", "nine days|9 days", False),
    ("No, you may keep it for nine days.", "nine days", True),
    ("No, nine days is wrong; it is seven.", "nine days", False),
    ("Nine days would be incorrect.", "nine days", False),
    ("You can't keep it for nine days.", "nine days", False),
    ("It is seven days, not nine days.", "nine days", False),
    ("It is not seven but nine days.", "nine days", True),
    ("Not longer than nine days.", "nine days", True),
    ("You must not keep it for more than nine days.", "nine days", True),
    ("If you do not return it within nine days, there is a fee.", "nine days", True),
    ("Do not forget to bring it back within nine days.", "nine days", True),
    ("Is it nine days?", "nine days", False),
    ("Is it nine days? Yes, nine days.", "nine days", True),
    ("I do not know whether it is nine days.", "nine days", False),
    ("The fee is $0.60 a day.", "0.60", True),
    ("The fee is $10.60 a day.", "0.60", False),
    ("It costs 1,995 euros.", "1995", True),
    ("It takes 9.5 days.", "9", False),
    ("It is -5 degrees.", "5", False),
    ("It came out on 15.12.1995.", "1995", True),
    ("It is written in C++.", "C++", True),
    ("It is written in C++.", "C", False),
    ("It is written in C.", "C++", False),
    ("It is written in C#, of course.", "C#", True),
    ("It runs on .NET.", ".NET", True),
    ("It runs on the net.", ".NET", False),
    ("AT&T sells it.", "AT&T", True),
    ("Write to help@example.com.", "help@example.com", True),
    ("Write to nohelp@example.com.", "help@example.com", False),
    ("Take 1½ cups.", "11|11⁄2", False),
    ("There are 10⁶ of them.", "106", False),
    ("Chez l'acheteur.", "acheteur", True),
    ("Höchstens neun Tage.", "neun Tage", True),
    ("Das sind nicht neun Tage.", "neun Tage", False),
    ("Neun Tage ist falsch.", "neun Tage", False),
    ("Nicht länger als neun Tage.", "neun Tage", True),
    ("Ce n'est pas neuf jours.", "neuf jours", False),
    ("Pas plus de neuf jours.", "neuf jours", True),
    ("No son nueve días.", "nueve días", False),
    ("Nueve días como máximo.", "nueve días", True),
]
CYRILLIC = [
    ("Девять дней.", "девять дней", True),
    ("Девяносто девять дней.", "девять дней", False),
    ("Это не девять дней.", "девять дней", False),
    ("Не более девяти дней.", "девяти дней", True),
    ("Девять дней — неверно.", "девять дней", True),  # the dash ends the clause
    ("Девять дней неверно.", "девять дней", False),
    ("Это девять дней?", "девять дней", False),
]
HAN = [
    ("您最多可以保留九天。", "九天|9天", True),
    ("您最多可以保留9天。", "九天|9天", True),
    ("您最多可以保留９天。", "九天|9天", True),
    ("您最多可以保留十九天。", "九天|9天", False),
    ("您最多可以保留19天。", "九天|9天", False),
    ("不是九天，是七天。", "九天", False),
    ("不是七天，而是九天。", "九天", True),
    ("不超过九天。", "九天", True),
    ("九天是错的。", "九天", False),
    ("九天不对。", "九天", False),
    ("可以保留九天吗？", "九天", False),
    ("可以保留九天吗", "九天", False),
    ("差不多九天。", "九天", True),
    ("如果九天内不归还，要付费。", "九天", True),
    ("一共9万人。", "9", False),
    ("用C++写的。", "C++", True),
    ("用C++写的。", "C", False),
    ("請放進綠色箱子。", "綠色箱子", True),
]
KANA = [
    ("九日間借りられます。", "九日", True),
    ("十九日間借りられます。", "九日", False),
    ("九日間ではありません。", "九日間", False),
    ("九日間を超えて借りることはできません。", "九日間", True),
    ("九日間は間違いです。", "九日間", False),
    ("九日間ですか。", "九日間", False),
    ("九日以内に返さなければなりません。", "九日", True),
    ("バスで行けます。", "バス", True),
    ("バスケットに入れます。", "バス", False),
    ("ﾊﾞｽで行けます。", "バス", True),
    ("みどりのはこに入れてください。", "みどりのはこ", True),
]
THAI = [
    ("เก็บไว้ได้เก้าวัน", "เก้าวัน", True),
    ("เก็บไว้ได้สิบเก้าวัน", "เก้าวัน", False),
    ("เก็บไว้ได้ ๙ วัน", "9 วัน", True),
    ("ไม่ใช่เก้าวัน", "เก้าวัน", False),
    ("ไม่เกินเก้าวัน", "เก้าวัน", True),
    ("เก้าวันผิด", "เก้าวัน", False),
    ("สามารถเก็บได้", "สาม", False),
    ("ใส่ในกล่องสีเขียว", "กล่องสีเขียว", True),
]
HANGUL = [
    ("9일입니다.", "9일", True),
    ("19일입니다.", "9일", False),
    ("9일이 아닙니다.", "9일", False),
    ("서울에서 받을 수 있습니다.", "서울", True),
    ("서울대학교입니다.", "서울", False),
    ("최대 아홉 날까지입니다.", "아홉 날", False),  # the ending of two parts is not known
    ("최대 아홉 날까지.", "아홉 날", True),
]
OTHERS = [
    ("नौ दिन तक।", "नौ दिन", True),
    ("यह दान है।", "दिन", False),
    ("تسعة أيام.", "تسعة أيام", True),
    ("خلال ٩ أيام.", "9", True),
    ("תשעה ימים.", "תשעה ימים", True),
    ("Εννέα ημέρες.", "εννέα ημέρες", True),
]
# Written after the rules, as a model would say it. Two are misjudged: "don't have to" is no denial, a Spanish "no" may stand far off.
NATURAL = [
    ("A rented film may be kept for up to nine days, after which a fee applies.", "nine days", True),
    ("According to our policy, you have 9 days to return the movie.", "nine days|9 days", True),
    ("There is no limit of nine days.", "nine days", False),
    ("The rental period is nine days, not seven.", "nine days", True),
    ("The rental period isn't nine days.", "nine days", False),
    ("You won't be charged if you return it within nine days.", "nine days", True),
    ("It's not necessary to return it before nine days have passed.", "nine days", True),
    ("We never allow nine days.", "nine days", False),
    ('The answer "nine days" is not correct.', "nine days", False),
    ("I'm sorry, but I can't tell you whether nine days is the limit.", "nine days", False),
    ("Films don't have to come back for nine days.", "nine days", True),
    ("I don't have information about the green box.", "green box", False),
    ("Put it into the green box, don't leave it at the desk.", "green box", True),
    ("Don't put it into the green box.", "green box", False),
    ("Never at midnight; at noon.", "midnight", False),
    ("The shop closes no later than midnight.", "midnight", True),
    ("It is a common mistake to think it is nine days.", "nine days", False),
    ("Heat (1995) is an action film.", "1995", True),
    ("Heat is an Action, Crime and Thriller film.", "Crime", True),
    ("It isn't a Comedy.", "Comedy", False),
    ("Sie können den Film neun Tage lang behalten.", "neun Tage", True),
    ("Neun Tage sind nicht erlaubt.", "neun Tage", False),
    ("Sie dürfen ihn keine neun Tage behalten.", "neun Tage", False),
    ("租期为九天，逾期每天收费六角。", "九天", True),
    ("您不能保留九天。", "九天", False),
    ("最长九天，不能续借。", "九天", True),
    ("很抱歉，我不知道是不是九天。", "九天", False),
    ("请不要超过九天归还。", "九天", True),
    ("逾期一天收费0.60元", "0.60", True),
    ("九日間までお手元に置いていただけます。", "九日間", True),
    ("返却期限は九日ではなく七日です。", "九日", False),
    ("返却期限は七日ではなく九日です。", "九日", True),
    ("九日間を過ぎると延滞料がかかります。", "九日間", True),
    ("申し訳ありませんが、九日間はお貸しできません。", "九日間", False),
    ("คุณสามารถเก็บภาพยนตร์ไว้ได้สูงสุดเก้าวัน", "เก้าวัน", True),
    ("คุณไม่สามารถเก็บไว้เก้าวันได้", "เก้าวัน", False),
    ("최대 9일 동안 보관할 수 있습니다.", "9일", True),
    ("9일 동안 보관할 수 없습니다.", "9일", False),
    ("Можно держать фильм девять дней.", "девять дней", True),
    ("Нельзя держать фильм девять дней.", "девять дней", False),
    ("Vous pouvez garder le film pendant neuf jours.", "neuf jours", True),
    ("Vous ne pouvez pas garder le film neuf jours.", "neuf jours", False),
    ("No puede quedarse la película nueve días.", "nueve días", False),
    ("Puede quedársela nueve días, no más.", "nueve días", True),
]
TABLE = [*LATIN, *CYRILLIC, *HAN, *KANA, *THAI, *HANGUL, *OTHERS]


def test_the_table_has_what_it_promises():
    assert len(TABLE) >= 60
    assert min(map(len, (LATIN, CYRILLIC, HAN, KANA, THAI, HANGUL))) >= 7


@pytest.mark.parametrize(("answer", "wordings", "right"), TABLE)
def test_an_answer_is_right_when_it_states_a_wording(answer, wordings, right):
    assert is_right(answer, [wordings.split("|")]) is right


def test_of_answers_that_the_rules_were_not_made_for_few_are_judged_wrong():
    misjudged = [answer for answer, wordings, right in NATURAL if is_right(answer, [wordings.split("|")]) is not right]
    assert len(misjudged) <= len(NATURAL) // 20, misjudged


@pytest.mark.parametrize(
    ("question", "answer", "right"),
    [
        ("Is it nine days or seven days?", "Is it nine days or seven days", False),
        ("Is it nine days or seven days?", "is it nine days or seven", False),
        ("Is it nine days or seven days?", "You asked: Is it nine days or seven days? It is nine days.", True),
        ("Is it nine days or seven days?", "Nine days.", True),
        ("Is it nine days or seven days?", "It is nine days.", True),
        ("可以保留九天还是七天？", "可以保留九天还是七天", False),
        ("可以保留九天还是七天？", "九天。", True),
        ("九日間ですか、七日間ですか。", "九日間ですか、七日間です", False),
    ],
)
def test_repeating_the_question_states_nothing(question, answer, right):
    assert is_right(answer, [["nine days", "九天", "九日間"]], question=question) is right


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("Heat is from 1995.", True),
        ("1983 or 1995.", False),
        ("It was not made in 1983 but in 1995.", True),
        ("1995年，不是1983年。", True),
        ("1983年和1995年。", False),
    ],
)
def test_what_is_rejected_must_not_be_stated_but_may_be_denied(answer, right):
    assert is_right(answer, [["1995"]], ["1983"]) is right


def growth_of(part: str) -> float:
    """How many times longer a text takes that is four times as long: about 4 where time grows with length, 16 with its square."""

    def work(length: int) -> Callable[[], object]:
        text = part * (length // len(part))
        return lambda: is_right(text, [["nine days", "九天"]], ["seven"], question=text[:200])

    return growth(work(2_000), work(8_000))


@pytest.mark.parametrize("part", ["not ", "nine ", "九", "不", "ไม่", "a.", "1,", "-", "안 ", "nine days. ", "not nine, "])
def test_a_long_answer_takes_no_long_time(part):
    assert growth_of(part) < 9
