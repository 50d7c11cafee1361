"""The bytes of a document -> text: UTF-8, UTF-16 by its mark, what an HTML page declares, and Chinese in GBK where nothing else fits."""

from __future__ import annotations

import codecs
import re

_DECLARED = re.compile(rb"<meta[^>]{0,200}?charset\s{0,8}=\s{0,8}[\"']?([A-Za-z0-9_.:-]{2,40})", re.IGNORECASE)
_DECLARED_WITHIN = 4_096
# A file in GBK or GB18030 holds these, whatever it is about; other encodings of two bytes, read as GBK, hardly do.
_FREQUENT = frozenset(
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日"
)
_MIN_FREQUENT_SHARE = 0.08
_MIN_HAN_SHARE = 0.8


def decoded(raw: bytes) -> str:
    """Return the text.

    Raises:
        UnicodeDecodeError: it is in no encoding that is known for certain; positions are those of UTF-8.
    """
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return raw.decode("utf-16")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = _as_declared(raw) or _as_chinese(raw)
        if text is None:
            raise
        return text


def _as_declared(raw: bytes) -> str | None:
    declared = _DECLARED.search(raw[:_DECLARED_WITHIN])
    if declared is None:
        return None
    name = declared[1].decode("ascii")
    try:
        # Who declares GB2312 writes characters of GB18030, too; browsers read it so.
        return raw.decode("gb18030" if name.lower() in ("gb2312", "gbk") else name)
    except (LookupError, UnicodeDecodeError):
        return None


def _as_chinese(raw: bytes) -> str | None:
    try:
        text = raw.decode("gb18030")
    except UnicodeDecodeError:
        return None
    foreign = [char for char in text if not char.isascii()]
    han = [char for char in foreign if "\u3400" <= char <= "\u9fff" or "\u3000" <= char <= "\u303f" or "\uff00" <= char <= "\uffef"]
    frequent = sum(char in _FREQUENT for char in han)
    return text if foreign and len(han) >= _MIN_HAN_SHARE * len(foreign) and frequent >= _MIN_FREQUENT_SHARE * len(han) else None
