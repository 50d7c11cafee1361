"""What a file is by its first bytes, whatever its name says. Pure."""

from __future__ import annotations

import io
import zipfile

from services.retriever.outline import Unreadable

PDF, WORD, SLIDES, SHEETS = "a PDF", "a Word document", "a PowerPoint presentation", "an Excel workbook"

SUFFIXES_OF: dict[str, tuple[str, ...]] = {
    PDF: (".pdf",),
    WORD: (".docx", ".docm"),
    SLIDES: (".pptx", ".pptm"),
    SHEETS: (".xlsx", ".xlsm"),
}
"""Kind -> suffixes of the files that have its format."""

_KIND_OF = {suffix: kind for kind, suffixes in SUFFIXES_OF.items() for suffix in suffixes}
# Where each program puts its parts: inside a zip.
_FOLDERS = {"word/": WORD, "ppt/": SLIDES, "xl/": SHEETS}
# PDF readers look for the mark within the first 1,024 bytes, since mail programs and printers write something before it.
_PDF_WITHIN = 1_024
_COMPOUND = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_ENCRYPTED = "EncryptedPackage".encode("utf-16-le")
_OTHERS = {
    b"{\\rtf": "RTF",
    b"\x89PNG": "a picture (PNG)",
    b"\xff\xd8\xff": "a picture (JPEG)",
    b"GIF8": "a picture (GIF)",
    b"Rar!": "an archive (RAR)",
    b"7z\xbc\xaf": "an archive (7z)",
    b"\x1f\x8b": "a compressed file (gzip)",
}


def check_kind(suffix: str, raw: bytes) -> None:
    """Pass a file whose content is what its suffix says, as far as the first bytes tell.

    Args:
        suffix: in lower case, with its dot.
        raw: the whole file.
    Raises:
        Unreadable: it is empty, encrypted, or of another kind; the message says which, and what to do.
    """
    wanted = _KIND_OF.get(suffix)
    if wanted is None and not raw.startswith((b"%PDF-", b"PK\x03\x04", _COMPOUND)):
        return  # text: its reader says what is wrong with it
    if not raw:
        raise Unreadable("it is empty: 0 bytes; copy or save it again")
    found = _kind_of(raw)
    if found == wanted:
        return
    if found in SUFFIXES_OF:
        raise Unreadable(f"its content is {found}: rename it to {SUFFIXES_OF[found][0]}")
    said = f"it is not {wanted}" if wanted is not None else f"it is not what {suffix} says"
    if found:
        raise Unreadable(f"{said}: its content is {found}; save it as {suffix}")
    raise Unreadable(f"{said}: its first bytes are {raw[:8].hex(' ')}; it is damaged or of another format, save it as {suffix} again")


def _kind_of(raw: bytes) -> str:
    """Return what a file is; empty when nothing is known of it.

    Raises:
        Unreadable: it is encrypted.
    """
    if b"%PDF-" in raw[:_PDF_WITHIN]:
        return PDF
    if raw.startswith(b"PK\x03\x04"):
        return _kind_of_zip(raw)
    if raw.startswith(_COMPOUND):
        if _ENCRYPTED in raw:
            raise Unreadable("it is encrypted: save it without a password")
        return "of Office 97 to 2003 (.doc, .ppt, .xls)"
    return next((name for mark, name in _OTHERS.items() if raw.startswith(mark)), "")


def _kind_of_zip(raw: bytes) -> str:
    try:
        names = zipfile.ZipFile(io.BytesIO(raw)).namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, UnicodeDecodeError) as error:
        raise Unreadable(f"it is damaged: {error}; copy it again, or open it in the program that wrote it and save it anew") from error
    if "[Content_Types].xml" not in names:
        return "an OpenDocument file" if "mimetype" in names else "an archive (zip)"
    return next((kind for folder, kind in _FOLDERS.items() if any(name.startswith(folder) for name in names)), "an archive (zip)")
