"""Texts for the finder of personal data, the same in every run: 200 with something planted, 2,000 that hold nothing and look alike.

Numbers are drawn, with the check digits that their issuers demand; no number belongs to anybody on purpose.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Iterator

SEED = 12
_Make = Callable[[random.Random], str]


def planted() -> list[tuple[str, str, str]]:
    """Return 200 of (language, kind, text): 60 Chinese, 50 English, 50 German, 40 Japanese."""
    rng = random.Random(f"{SEED}/planted")
    texts = []
    for language, count in (("zh", 60), ("en", 50), ("de", 50), ("ja", 40)):
        rows = _PLANTED[language]
        for index in range(count):
            kind, sentence, make = rows[index % len(rows)]
            texts.append((language, kind, sentence.replace("@@", make(rng))))
    return texts


def clean() -> list[tuple[str, str]]:
    """Return 2,000 of (language, text): 500 each."""
    rng = random.Random(f"{SEED}/clean")
    return [
        (language, sentence.replace("@@", make(rng)))
        for language in ("zh", "en", "de", "ja")
        for sentence, make in _cycled(_CLEAN[language], 500)
    ]


def _cycled(rows: list[tuple[str, _Make]], count: int) -> Iterator[tuple[str, _Make]]:
    return (rows[index % len(rows)] for index in range(count))


def _of(shape: str) -> _Make:
    """Draw a text of a shape: 9 is any digit, 8 is 1 to 9, A a capital, f a hexadecimal digit; what stands in braces stays."""

    def make(rng: random.Random) -> str:
        drawn, is_fixed = [], False
        for char in shape:
            if char in "{}":
                is_fixed = char == "{"
            elif is_fixed:
                drawn.append(char)
            else:
                pool = {"9": string.digits, "8": "123456789", "A": string.ascii_uppercase, "f": "0123456789abcdef"}.get(char, char)
                drawn.append(rng.choice(pool))
        return "".join(drawn)

    return make


def _one_of(*shapes: str) -> _Make:
    return lambda rng: _of(rng.choice(shapes))(rng)


def _full_width(make: _Make) -> _Make:
    return lambda rng: make(rng).translate({ord(char): ord(char) + 0xFEE0 for char in string.digits + "+-()"})


def _luhn(prefix: str, length: int, group: str = "") -> _Make:
    def make(rng: random.Random) -> str:
        body = prefix + _of("9" * (length - 1 - len(prefix)))(rng)
        doubled = [int(digit) * 2 for digit in body[::-2]]
        total = sum(map(int, body[-2::-2])) + sum(number - 9 if number > 9 else number for number in doubled)
        number = body + str(-total % 10)
        return group.join(number[start : start + 4] for start in range(0, length, 4))

    return make


def _iban(country: str, body: str, group: str = " ") -> _Make:
    def make(rng: random.Random) -> str:
        account = _of(body)(rng)
        number = int("".join(str(int(char, 36)) for char in f"{account}{country}00"))
        iban = f"{country}{98 - number % 97:02d}{account}"
        return group.join(iban[start : start + 4] for start in range(0, len(iban), 4))

    return make


def _chinese_id(group: str = "", *, lower: bool = False) -> _Make:
    def make(rng: random.Random) -> str:
        body = rng.choice(["110101", "310104", "440305", "510107", "330106"])
        body += f"{rng.randint(1950, 2008)}{rng.randint(1, 12):02d}{rng.randint(1, 28):02d}{rng.randint(1, 999):03d}"
        check = "10X98765432"[sum(int(digit) * pow(2, 17 - index, 11) for index, digit in enumerate(body)) % 11]
        return group.join((body[:6], body[6:14], body[14:] + (check.lower() if lower else check)))

    return make


def _short_chinese_id(rng: random.Random) -> str:
    day = f"{rng.randint(40, 85)}{rng.randint(1, 12):02d}{rng.randint(1, 28):02d}"
    return f"{rng.choice(['110101', '310104', '440305'])}{day}{rng.randint(1, 999):03d}"


def _japanese_id(rng: random.Random) -> str:
    body = _of("99999999999")(rng)
    total = sum(int(digit) * weight for digit, weight in zip(reversed(body), [2, 3, 4, 5, 6, 7, 2, 3, 4, 5, 6], strict=True)) % 11
    number = body + str(0 if total <= 1 else 11 - total)
    return f"{number[:4]} {number[4:8]} {number[8:]}"


def _tax_id(rng: random.Random) -> str:
    body = _of("8999999999")(rng)
    product = 10
    for digit in body:
        product = ((int(digit) + product) % 10 or 10) * 2 % 11
    number = body + str((11 - product) % 10)
    return f"{number[:2]} {number[2:5]} {number[5:8]} {number[8:]}"


def _article(prefix: str) -> _Make:
    def make(rng: random.Random) -> str:
        body = prefix + _of("9" * (12 - len(prefix)))(rng)
        return body + str(-sum(int(digit) * (3 if index % 2 else 1) for index, digit in enumerate(body)) % 10)

    return make


def _isbn(rng: random.Random) -> str:
    number = _article(rng.choice(["978", "979"]))(rng)
    return f"{number[:3]}-{number[3]}-{number[4:6]}-{number[6:12]}-{number[12]}"


_CN_MOBILE = _one_of("{13}899999999", "{15}899999999", "{18}899999999", "{199}99999999")
_DE_PHONE = _one_of(
    "{030 }8999999", "{0176 }89999999", "{089/}8999999", "{0221-}8999999", "{0151}89999999", "{+49 30 }8999999", "{+49 (0)171 }8999999"
)
_US_PHONE = _one_of("{(}{2}89{) 5}99{-}9999", "{3}{1}2{-5}55{-}9999", "{+1 4}15{ 5}55 9999", "{646.5}55{.}9999", "{2025}559999")
_JP_PHONE = _one_of("{090-}8999{-}9999", "{080-}8999{-}9999", "{03-}8999{-}9999", "{06（}8999{）}9999", "{070}89999999")
_EMAIL = _one_of("{jane.}A{@example.com}", "{li}99{@qq.com}", "{m.müller}9{@firma.de}", "{tanaka_}99{@mail.example.co.jp}")

_PLANTED: dict[str, list[tuple[str, str, _Make]]] = {
    "zh": [
        ("phone", "我的电话是@@", _CN_MOBILE),
        ("phone", "电话@@", _of("{010-6}9999999")),
        ("identity", "我的身份证号是@@，请帮我查一下", _chinese_id()),
        ("identity", "身份证@@。", _short_chinese_id),
        ("iban", "请汇款到@@这个账户", _iban("DE", "899999999999999999")),
        ("card", "银行卡号@@，开户行在北京", _luhn("622202", 19)),
        ("email", "请把发票发到@@谢谢", _EMAIL),
        ("phone", "请拨打@@联系我", _full_width(_CN_MOBILE)),
        ("phone", "有问题打@@或者发消息", _of("{1}38{ }9999{ }9999")),
        ("phone", "（座机：@@转801）", _of("{021 6}999 9999")),
        ("identity", "身份证号码：@@", _chinese_id(" ")),
        ("identity", "证件号@@已过期", _full_width(_chinese_id())),
        ("card", "信用卡@@有效期12/27", _luhn("4", 16, " ")),
        ("phone", "国外请打@@", _of("{+86 139}99999999")),
        ("phone", "微信同号：@@", _CN_MOBILE),
        ("email", "邮箱是@@，收到请回复", _of("{wang.wei}99{＠163.com}")),
        ("phone", "我姓李，手机一三八@@", lambda rng: "".join(rng.choice("零一二三四五六七八九") for _ in range(8))),
        ("phone", "两个号码都可以：@@", lambda rng: f"{_CN_MOBILE(rng)}/{_CN_MOBILE(rng)}"),
        ("identity", "護照號碼@@", _of("{E}89999999")),
        ("phone", "QQ：@@", _of("89999999")),
    ],
    "en": [
        ("phone", "My number is @@.", _US_PHONE),
        ("phone", "Please call me at @@ after five", _US_PHONE),
        ("phone", "You can reach me under +44\u00a020\u00a07946\u00a0@@", _of("{0}999")),
        ("card", "Charge it to @@, exp. 10/30.", _luhn("4", 16, " ")),
        ("card", "my card @@ was declined", _luhn("37", 15)),
        ("iban", "Pay to @@ by Friday", _iban("GB", "{WEST}99999999999999")),
        ("email", "write to @@ please", _EMAIL),
        ("identity", "My SSN is @@", _of("{5}23-{4}5-8999")),
        ("phone", "mobile:@@", _of("{07700 9}00999")),
        ("phone", "Text \u202a@@\u202c instead", _of("{+1 (}4{15) 5}55-9999")),
        ("email", "it is jane (at) example@@ (dot) org", _of("99")),
        ("phone", "I moved, call 555–@@ now", _of("{0}899")),
        ("card", "Card number: @@", _luhn("5412", 16, "-")),
        ("phone", "tel.@@", _of("{020 7}999 9999")),
        ("identity", "passport no. @@", _of("{C}89999999")),
        ("phone", "Ring me: 00@@", _of("{44 20 7}999 9999")),
        ("phone", "two lines, @@", lambda rng: f"{_of('{202-5}55-0999')(rng)}, {_of('{202-5}55-0999')(rng)}"),
    ],
    "de": [
        ("phone", "Meine Nummer ist @@.", _DE_PHONE),
        ("phone", "Tel.@@", _of("{030 }8999999")),
        ("phone", "Ruf mich an: +49\u00a030\u00a0@@", _of("8999999")),
        ("iban", "Bitte auf @@ überweisen", _iban("DE", "899999999999999999")),
        ("iban", "IBAN:@@", _iban("AT", "8999999999999999", "")),
        ("email", "Schreiben Sie an @@!", _EMAIL),
        ("email", "max (ät) beispiel@@.de", _of("99")),
        ("card", "Kreditkarte @@", _luhn("5", 16, " ")),
        ("identity", "Meine Steuer-ID: @@", _tax_id),
        ("phone", "erreichbar unter @@", _DE_PHONE),
        ("phone", "Handy @@ (abends)", _of("{0176/}8999 9999")),
        ("phone", "Telefon: (@@", _of("{0 30) }899 99 99")),
        ("phone", "Fax 0049-@@", _of("{89-}8999999")),
        ("identity", "Reisepass @@", _of("{C}8{F}899{K}99")),
        ("iban", "Konto der Frau Schmidt:@@", _iban("CH", "{00762}999999999999")),
        ("phone", "WhatsApp: @@", _of("{+43 664 }8999999")),
        ("phone", "meine Durchwahl lautet 0711 – @@", _of("{8}99 99 99")),
    ],
    "ja": [
        ("phone", "電話番号は@@です", _JP_PHONE),
        ("phone", "携帯は@@", _full_width(_of("{090-}8999{-}9999"))),
        ("phone", "連絡先：@@まで", _JP_PHONE),
        ("phone", "電話@@", _of("{03ー}8999{ー}9999")),
        ("email", "メールは@@までお願いします", _EMAIL),
        ("card", "カード番号@@で払います", _luhn("3566", 16, " ")),
        ("card", "カード番号は@@です", _full_width(_luhn("4", 16, "-"))),
        ("identity", "マイナンバーは@@です", _japanese_id),
        ("phone", "海外からは@@へ", _of("{+81 90-}8999-9999")),
        ("iban", "送金先は@@です", _iban("FR", "89999999999999999999999")),
        ("phone", "折り返し@@にお願いします", _of("{0}90{1}{9}89{-}9999")),
        ("identity", "旅券番号@@", _of("{TR}8999999")),
        ("phone", "自宅は@@です", _of("{045-}899{-}9999")),
    ],
}

_UUID = _of("ffffffff-ffff-{4}fff-{8}fff-ffffffffffff")
_TIME = _of("{2023-1}{2}-1{9} 1{0}:{4}9")
_VERSION = _one_of("{v2.}9{.}99", "{10.0.}19999{.}8999", "8{.}9{.}99{.}8999", "{v1.}99{.}0{-rc}9")
_IP = _one_of("{192.168.1}99{.2}09", "{10.}89{.1}09{.2}49", "{172.16.25}4{.1}00")
_ORDER = _one_of(
    "{2023121}5899999", "8999-9999-8999", "8999999999", "{A}899-9999999-9999999", "89999999", "8{00}9999{9}99", "{SO-2024-}00999999"
)
_TRACKING = _one_of(
    "8999-9999-9999", "{SF}8999999999999", "{1Z999AA1}0999999999", "899999999999", "{RR}899999999{CN}", "{00340}434899999999999"
)
_ISBN10 = _of("{3-16-}899999{-X}")
_PRICE = _one_of("8,999", "89,999.99", "8{.}999{,}99", "899.90", "8,999,999")
_COUNT = _one_of("8,999,999", "8{ }999{ }999{ }999", "8999999", "89999999", "8{.}999{.}999{.}999")
_RANGE = _one_of("{200-}8{00}", "{1939-1945}", "{120–1}30", "{2010-2012, 2015-2019}")
_DATE = _one_of("{2023-12-}1{9}", "{15.12.}20{2}{3}", "{2023/0}{1}/2{9}", "{12/1}{5}/{202}{3}")
_STAMP = _one_of("{17}00{000}999", "{17}00000999{123}", "{20231215}1{0}30{00}")
_HASH = _one_of("ffffffffffffffffffffffffffffffffffffffff", "fffffff")
_DECIMALS = _one_of("{3.14159265358}9999", "{52.520}9999, {13.404}9999", "{0.000012345}999", "{6.022e23}")
_LOTTERY = _one_of("{3 12 17 24 38 41}", "{7 11 19 2}9{ 33 4}9", "{05.12.19.24.38}")
_SERIAL = _one_of("{SN}8999999999", "{C02}899999999", "8999-AA99-9999", "899{-}999{-}8999")

_CLEAN: dict[str, list[tuple[str, _Make]]] = {
    "zh": [
        ("订单号@@还没发货", _ORDER),
        ("我的订单号是@@，什么时候到？", _ORDER),
        ("快递单号：@@", _TRACKING),
        ("会议定于@@开始", _TIME),
        ("这台电脑卖¥@@元", _PRICE),
        ("总人口@@人", _COUNT),
        ("升级到版本@@之后打不开", _VERSION),
        ("书号ISBN @@", _isbn),
        ("这本书（ISBN：@@）在哪里借", _article("978")),
        ("服务器地址是@@", _IP),
        ("大概需要@@字", _RANGE),
        ("生产日期@@", _DATE),
        ("时间戳@@是什么时候", _STAMP),
        ("请求编号@@", _UUID),
        ("圆周率约等于@@", _DECIMALS),
        ("本期号码@@", _LOTTERY),
        ("序列号@@无法激活", _SERIAL),
        ("商品条码@@", _article("69")),
        ("二〇二三年十二月十五日第@@次会议", _of("89")),
        ("邮编@@，北京市", _of("{1000}99")),
        ("文件大小是@@字节", _COUNT),
        ("用pip安装torch==@@和numpy", _VERSION),
        ("第@@页到最后一页", _RANGE),
        ("发票号码@@", _of("{0}8999999")),
        ("货号@@有没有别的颜色", _of("8999999999")),
    ],
    "en": [
        ("Order @@ has not arrived", _ORDER),
        ("My order number is @@, where is it?", _ORDER),
        ("Tracking number @@", _TRACKING),
        ("It starts at @@.", _TIME),
        ("The total is $@@ with tax", _PRICE),
        ("It has @@ inhabitants", _COUNT),
        ("Since version @@ it crashes", _VERSION),
        ("ISBN @@ is out of print", _isbn),
        ("The book is @@.", _isbn),
        ("Connect to @@ first", _IP),
        ("Write @@ words", _RANGE),
        ("The film came out on @@.", _DATE),
        ("unix time @@", _STAMP),
        ("request @@ failed", _UUID),
        ("commit @@ broke it", _HASH),
        ("The value is @@.", _DECIMALS),
        ("The winning numbers were @@.", _LOTTERY),
        ("Serial number: @@", _SERIAL),
        ("pip install react@@ and restart", _of("{@18.}8{.}9")),
        ("see https://example.com/items/@@ for more", _of("{2}025559999")),
        ("use icon@2x.png and logo@@", _of("{@3x.png}")),
        ("In the years 1994 1995 1996 @@.", _of("{199}9")),
        ("The resolution is @@ pixels", _one_of("{1920x1080}", "{3840 x 2160}")),
        ("The invoice @@ was paid twice", _ORDER),
        ("ISBN-10: @@", _ISBN10),
        ("invoice no. @@", _of("{0}899999999")),
    ],
    "de": [
        ("Bestellung @@ ist nicht angekommen", _ORDER),
        ("Meine Bestellnummer lautet @@.", _ORDER),
        ("Sendungsnummer: @@", _TRACKING),
        ("Es beginnt am @@ Uhr", _TIME),
        ("Das kostet @@ € mit Versand", _PRICE),
        ("Die Stadt hat @@ Einwohner", _COUNT),
        ("Seit Version @@ stürzt es ab", _VERSION),
        ("ISBN @@ ist vergriffen", _isbn),
        ("Verbinde dich mit @@", _IP),
        ("Auf den Seiten @@", _RANGE),
        ("Der Film erschien am @@.", _DATE),
        ("Zeitstempel @@", _STAMP),
        ("Anfrage @@ schlug fehl", _UUID),
        ("Der Wert beträgt @@.", _DECIMALS),
        ("Gezogen wurden @@", _LOTTERY),
        ("Seriennummer @@", _SERIAL),
        ("Rechnung Nr. @@", _of("{0}899999999")),
        ("Artikel @@ ist ausverkauft", _of("8999999999")),
        ("vom 15.12.23 bis zum @@", _of("{18.12.23}")),
        ("PLZ @@ Berlin", _of("{101}99")),
        ("Die Kundennummer @@ steht oben", _of("8999999999")),
        ("EAN @@", _of("{40}06381333931")),
        ("Das Gerät wiegt @@ g und misst 120 x 80 x 40 mm", _of("8999")),
        ("Aktenzeichen @@", _one_of("{12 O 3}99/{23}", "8999-9999-99")),
        ("Bei 230 V und 50-60 Hz braucht es @@ kWh", _COUNT),
    ],
    "ja": [
        ("注文番号@@の商品が届きません", _ORDER),
        ("注文番号は@@です", _ORDER),
        ("伝票番号：@@", _TRACKING),
        ("追跡番号は@@です", _TRACKING),
        ("@@に始まります", _TIME),
        ("価格は@@円です", _PRICE),
        ("人口は@@人です", _COUNT),
        ("バージョン@@にしてから動きません", _VERSION),
        ("ISBN @@の本はありますか", _isbn),
        ("サーバーは@@です", _IP),
        ("@@文字で書いてください", _RANGE),
        ("公開日は@@です", _DATE),
        ("タイムスタンプ@@", _STAMP),
        ("リクエスト@@が失敗しました", _UUID),
        ("値は@@です", _DECIMALS),
        ("当選番号は@@です", _LOTTERY),
        ("製造番号@@", _SERIAL),
        ("〒@@ 東京都千代田区", _of("{1}00-0{0}99")),
        ("郵便番号は@@です", _of("{5}30-0899")),
        ("受付番号@@でお待ちください", _of("8999999999")),
        ("JANコード@@", _article("49")),
        ("２０２３年１２月１５日から@@日間", _of("89")),
        ("型番は@@です", _SERIAL),
        ("容量は@@バイトです", _COUNT),
        ("請求書番号@@", _of("{0}899999999")),
    ],
}
