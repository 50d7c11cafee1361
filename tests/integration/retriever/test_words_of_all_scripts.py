"""What people type and paste finds its passage by words alone, on a real LanceDB: Chinese, Japanese, Thai, names with signs, titles."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path

import pytest

from services.retriever.core.documents import IndexedPassage, passage_text
from services.retriever.lance_index import LanceIndex

pytestmark = pytest.mark.integration

# id: title, text. None of them is about what the others are about.
PASSAGES = {
    "zh/rent.md": ("租借规则", "影片最多可以保留九天，逾期每天收费六角。"),
    "zh/return.md": ("归还地点", "请把影片放进任何火车站的绿色箱子里。"),
    "zh/damaged.md": ("损坏的光盘", "把损坏光盘的照片发给维修台，您会免费得到一张新的。"),
    "zh/card.md": ("图书馆卡", "持有图书馆卡的顾客享受百分之四十的折扣。"),
    "zh/database.md": ("数据库备份", "数据库每天凌晨三点自动备份，日志保存四年。"),
    "zh/cat.md": ("猫", "我家的猫不吃鱼。"),
    "zh/trad.md": ("歸還", "請將錄影帶放進綠色箱子，謝謝。"),
    "zh/install.md": ("安装", "用apt-get安装Python 3.11和GCC编译器。"),
    "ja/rent.md": ("貸出期間", "映画は九日間まで借りることができます。延滞料は一日六十円です。"),
    "ja/return.md": ("返却場所", "緑色のグリーンボックスに入れてください。駅ならどこでも返却できます。"),
    "ja/member.md": ("会員カード", "図書館カードをお持ちの方はレンタル料が四割引きです。"),
    "ja/server.md": ("サーバー設定", "メモリが足りないときはスワップを増やしてください。"),
    "ja/kana.md": ("ひらがな", "おにぎりのつくりかたをせつめいします。"),
    "th/rent.md": ("ระยะเวลาเช่า", "เก็บภาพยนตร์ไว้ได้เก้าวัน หลังจากนั้นคิดค่าปรับวันละหกบาท"),
    "th/return.md": ("สถานที่คืน", "ใส่แผ่นลงในกล่องสีเขียวที่สถานีรถไฟ"),
    "th/card.md": ("บัตรสมาชิก", "ผู้ถือบัตรห้องสมุดได้รับส่วนลดสี่สิบเปอร์เซ็นต์"),
    "ko/rent.md": ("대여 기간", "영화는 아홉 날 동안 보관할 수 있습니다. 연체료가 있습니다."),
    "en/who.md": ("The Who", "A band from London."),
    "en/beatles.md": ("The Beatles", "The band that the world knows; who does not? The songs are the thing."),
    "en/it.md": ("It (1990)", "A clown."),
    "en/tobe.md": ("To Be or Not to Be", "A comedy about actors in Warsaw."),
    "catalog:50": ("Usual Suspects, The (1995)", "Categories: Crime, Thriller."),
    "en/cpp.md": ("C++", "A language with templates."),
    "en/c.md": ("C", "A language without classes. The C language is small, and C is old."),
    "en/csharp.md": ("C#", "A language of another company."),
    "en/dotnet.md": (".NET", "A runtime for several languages."),
    "en/net.md": ("Nets", "A net catches fish. Nets are made of cord."),
    "en/att.md": ("AT&T", "A telephone company."),
    "en/node.md": ("node.js", "Runs scripts on a server."),
    "en/mail.md": ("Contact", "Write to help.desk+films@example.co.uk, or to sales@example.com."),
    "en/ids.md": (
        "Codes",
        "Part AB-1234-56, commit 3f2504e0-4f89-11d3-9a0c-0305e82c3301, sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822c.",
    ),
    "en/settings.md": ("Settings", "Set max_concurrent_searches to 64 and TUNEMESH_RETRIEVER_POLL_MS to 2000."),
    "fr/acheteur.md": ("L'acheteur", "C’est l’acheteur qui paie les frais de port; aujourd’hui c’est gratuit."),
    "de/fee.md": ("Verspätung", "Für jeden Tag der Verspätung berechnen wir sechzig Cent. Größe und Straße."),
    "en/power.md": ("Powers", "There are 10⁶ of them, and 1½ cups of flour."),
    "en/vitamin.md": ("Vitamin C", "Oranges have it. The son of the man in the war had a van."),
    "en/version.md": ("Release 2.13.0", "It came out on 2023-12-15 and costs 1,995 euros."),
    "ru/rent.md": ("Срок проката", "Фильм можно держать девять дней."),
    "hi/rent.md": ("किराया", "आप फिल्म नौ दिन तक रख सकते हैं।"),
    "ar/rent.md": ("مدة الإيجار", "يمكنك الاحتفاظ بالفيلم تسعة أيام."),
}

QUERIES = [
    # Chinese
    ("九天", "zh/rent.md"),
    ("逾期收费", "zh/rent.md"),
    ("影片可以保留几天？", "zh/rent.md"),
    ("绿色箱子", "zh/return.md"),
    ("火车站", "zh/return.md"),
    ("损坏光盘怎么办", "zh/damaged.md"),
    ("维修台", "zh/damaged.md"),
    ("图书馆卡折扣", "zh/card.md"),
    ("数据", "zh/database.md"),
    ("数据库", "zh/database.md"),
    ("凌晨三点", "zh/database.md"),
    ("猫", "zh/cat.md"),
    ("綠色箱子", "zh/trad.md"),
    ("安装GCC", "zh/install.md"),
    ("Python编译器", "zh/install.md"),
    ("apt-get", "zh/install.md"),
    ("归还地点", "zh/return.md"),
    # Japanese
    ("九日間", "ja/rent.md"),
    ("延滞料", "ja/rent.md"),
    ("映画は何日借りられますか", "ja/rent.md"),
    ("グリーンボックス", "ja/return.md"),
    ("ボックス", "ja/return.md"),
    ("ﾎﾞｯｸｽ", "ja/return.md"),
    ("返却場所", "ja/return.md"),
    ("図書館カード", "ja/member.md"),
    ("レンタル料", "ja/member.md"),
    ("メモリ", "ja/server.md"),
    ("スワップを増やす", "ja/server.md"),
    ("おにぎり", "ja/kana.md"),
    # Thai
    ("เก้าวัน", "th/rent.md"),
    ("ค่าปรับ", "th/rent.md"),
    ("กล่องสีเขียว", "th/return.md"),
    ("สถานีรถไฟ", "th/return.md"),
    ("คืนแผ่นที่ไหน", "th/return.md"),
    ("บัตรห้องสมุด", "th/card.md"),
    ("ส่วนลด", "th/card.md"),
    # Korean, Russian, Hindi, Arabic
    ("연체료", "ko/rent.md"),
    ("영화", "ko/rent.md"),
    ("девять дней", "ru/rent.md"),
    ("नौ दिन", "hi/rent.md"),
    ("تسعة أيام", "ar/rent.md"),
    # Titles of words that every text has
    ("The Who", "en/who.md"),
    ("the who", "en/who.md"),
    ("It", "en/it.md"),
    ("To be or not to be", "en/tobe.md"),
    ("The Usual Suspects", "catalog:50"),
    ("Usual Suspects, The (1995)", "catalog:50"),
    # Names with signs
    ("C++", "en/cpp.md"),
    ("c++ templates", "en/cpp.md"),
    ("C#", "en/csharp.md"),
    ("C", "en/c.md"),
    (".NET", "en/dotnet.md"),
    ("AT&T", "en/att.md"),
    ("node.js", "en/node.md"),
    ("help.desk+films@example.co.uk", "en/mail.md"),
    ("sales@example.com", "en/mail.md"),
    ("AB-1234-56", "en/ids.md"),
    ("3f2504e0-4f89-11d3-9a0c-0305e82c3301", "en/ids.md"),
    ("9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822c", "en/ids.md"),
    ("max_concurrent_searches", "en/settings.md"),
    ("tunemesh_retriever_poll_ms", "en/settings.md"),
    ("en/settings.md", "en/settings.md"),
    ("settings.md", "en/settings.md"),
    ("acheteur", "fr/acheteur.md"),
    ("l'acheteur", "fr/acheteur.md"),
    ("l’acheteur", "fr/acheteur.md"),
    ("aujourd'hui", "fr/acheteur.md"),
    ("verspatung", "de/fee.md"),
    ("GRÖSSE", "de/fee.md"),
    ("10⁶", "en/power.md"),
    ("1½ cups", "en/power.md"),
    ("vitamin c", "en/vitamin.md"),
    ("war", "en/vitamin.md"),
    ("son", "en/vitamin.md"),
    ("man", "en/vitamin.md"),
    ("2.13.0", "en/version.md"),
    ("2023-12-15", "en/version.md"),
    ("1995 euros", "en/version.md"),
    ("ＡＴ＆Ｔ", "en/att.md"),
]


WITHOUT_WORDS = ["???", "。", "!!", "·", "  ", "…"]


async def _asked(folder: Path) -> dict[str, list[str]]:
    index = LanceIndex(folder)
    index.take()
    await index.open(None)
    passages = [
        IndexedPassage(
            passage_id=name,
            document_id=name,
            source="catalog" if ":" in name else "files",
            content_hash="h",
            **asdict(passage_text(name, title, text)),
        )
        for name, (title, text) in PASSAGES.items()
    ]
    await index.put(passages, None, list(PASSAGES))
    snapshot = await index.publish()
    queries = [*(query for query, _ in QUERIES), *WITHOUT_WORDS]
    found = {query: [hit.passage_id for hit in await snapshot.by_words(query, source="", limit=5)] for query in queries}
    index.close()
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, list[str]]:
    """What each query finds, best first: one index for all."""
    return asyncio.run(_asked(tmp_path_factory.mktemp("words") / "index"))


def test_the_table_has_what_it_promises():
    names = [name for _, name in QUERIES]
    assert sum(name[:2] in ("zh", "ja", "th") for name in names) >= 35
    assert len(QUERIES) >= 70


@pytest.mark.parametrize(("query", "name"), QUERIES)
def test_words_find_their_passage_first(found, query, name):
    assert found[query][:1] == [name]


@pytest.mark.parametrize("query", WITHOUT_WORDS)
def test_a_query_without_words_finds_nothing(found, query):
    assert found[query] == []
