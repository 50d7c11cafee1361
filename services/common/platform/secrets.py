"""What must not be printed: the secrets among a process's variables, and text without them.

A secret is the value of a variable whose name says so (`AWS_SECRET_ACCESS_KEY`, `MLFLOW_TRACKING_PASSWORD`, `OTEL_EXPORTER_OTLP_HEADERS`,
`HF_TOKEN`, …), the password inside any variable's address (`redis://:PASSWORD@host`, `…?password=PASSWORD`), and what stands under such a
name inside a connection string or JSON, whatever the variable is called (`…;AccountKey=KEY;…`, `FSSPEC_S3={"secret": "SECRET"}`). Libraries
print what they were given, in messages that nobody foresees; so the text is cleaned where it leaves the process. The time that this takes
grows with the text's length alone. Pure but for `guard_output`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TextIO, cast
from urllib.parse import quote, quote_plus, unquote

HIDDEN = "***"

# A shorter value hides more of the text than it protects; inside an address (`without_credentials`) any length is hidden.
_MIN_CHARS = 4
# Of a key that has several lines, a shorter line says nothing.
_MIN_LINE_CHARS = 16
_SECRET_NAME = re.compile(
    r"(^|_)(PASSWORD|PASSWD|PASSPHRASE|SECRET|TOKEN|CREDENTIALS?|AUTHORIZATION|SAS_TOKEN|API_?KEY|ACCESS_KEY|ACCOUNT_KEY|PRIVATE_KEY"
    r"|CONNECTION_STRING)$|(^|_)SECRET_|_HEADERS$",
    re.IGNORECASE,
)
# Inside a value, where PWD is no working directory.
_SECRET_KEY = re.compile(rf"(^|_)(PWD|SIG|SIGNATURE|ACCOUNTKEY|ACCESSKEY|SECRETKEY)$|{_SECRET_NAME.pattern}", re.IGNORECASE)
_CAPITAL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_NO_SECRETS = frozenset({"true", "false", "none", "null"})
_SECRET_PARAMETER = (
    r"(?:password|passwd|secret|token|api_?key|(?:shared_?)?access_?key|account_?key|sig|signature|shared_?access_?signature|authorization)"
)
_PARAMETERS = re.compile(rf"(?P<name>[?&;]{_SECRET_PARAMETER}=)(?P<value>[^&\s]*)", re.IGNORECASE)
_PARAMETER_VALUES = re.compile(rf"(?:^|[?&;]){_SECRET_PARAMETER}=([^&\s]*)", re.IGNORECASE)
# `name=value` in a connection string, `"name": "value"` in what looks like JSON.
_KEY = re.compile(r"""(?<![\w.-])(?P<key>[A-Za-z][\w.-]{0,63})["']?\s{0,8}[=:]\s{0,8}""")
_VALUE = re.compile(r""""[^"]*"|'[^']*'|(?:(?:Bearer|Basic)\s+)?[^\s;]+""", re.IGNORECASE)
# In running text a blank or a quotation mark ends an address.
_WORD = re.compile(r"""[^\s"']+""")


class Redactor:
    """Replaces known secrets, and whatever stands in the place of a password in an address, by asterisks."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        """`secrets` are values, not names; those of less than four characters are left out."""
        known = {form for secret in secrets for form in _forms(secret)}
        longest_first = sorted((form for form in known if len(form) >= _MIN_CHARS), key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def __call__(self, text: str) -> str:
        """Return the text without secrets."""
        if self._known is not None:
            text = self._known.sub(HIDDEN, text)
        return without_credentials(text)


def _forms(secret: str) -> set[str]:
    """Return how a secret may be spelt: as it is, encoded for an address, escaped in JSON or by repr, and each line of a key by itself."""
    lines = {line.strip() for line in secret.splitlines() if len(line.strip()) >= _MIN_LINE_CHARS}
    encoded = {quote(secret, safe=""), quote(secret), quote_plus(secret), unquote(secret)}
    return {secret, *lines, *encoded, json.dumps(secret)[1:-1], repr(secret)[1:-1]}


def without_credentials(text: str) -> str:
    """Return the text with the credentials of each address in it replaced: redis://***@host, https://host/?token=***."""
    if "://" in text and "@" in text:
        text = _WORD.sub(_word_without_credentials, text)
    return _PARAMETERS.sub(rf"\g<name>{HIDDEN}", text) if "=" in text else text


def _word_without_credentials(match: re.Match[str]) -> str:
    word = match[0]
    if "://" not in word or "@" not in word:
        return word
    shown, copied = [], 0
    for start, end in _credentials(word):
        shown += [word[copied:start], HIDDEN]
        copied = end
    return "".join((*shown, word[copied:]))


def _credentials(word: str) -> Iterator[tuple[int, int]]:
    """Yield where credentials stand in a text: from behind each "://" to the "@" that ends them.

    A password may hold "@" and, when nobody has encoded it, "/". It ends at the last "@" before the next "/"; where there is none, and what
    stands before the "/" is a name with a colon and no port, at the last "@" of all. Each character is looked at a fixed number of times.
    """
    last = word.rfind("@")
    begin = word.find("://")
    while 0 <= begin < last:
        start = begin + 3
        slash = word.find("/", start)
        segment_end = len(word) if slash < 0 else slash
        end = word.rfind("@", start, segment_end)
        if end < 0:
            colon = word.find(":", start, segment_end)
            is_port = slash >= 0 and word[colon + 1 : segment_end].isdecimal()
            end = last if 0 <= colon < last and not is_port else -1
        if end >= 0:
            yield start, end
            start = end + 1
        begin = word.find("://", start)


def holds_password(address: str) -> bool:
    """Return whether an address carries a name, a password or a token."""
    return without_credentials(address) != address


def secrets_in(environ: Mapping[str, str]) -> frozenset[str]:
    """Return the secrets among a process's variables."""
    found: set[str] = set()
    for name, value in environ.items():
        if _SECRET_NAME.search(name):
            found |= _parts_of(value)
        found |= _keyed_in(value)
        if "://" in value:
            found |= _of_address(value)
    return frozenset(value for value in found if value and value.lower() not in _NO_SECRETS)


def _parts_of(value: str) -> set[str]:
    """Return a secret value, and for lists such as `authorization=Bearer X,other=Y` the values in it: each may be printed alone."""
    whole = {value.strip(), *(one for one in value.split()[-1:])}
    document = _json_in(value)
    if document is not None:
        return whole | (set() if _keyed_in(value) else {leaf for _, leaf in _leaves("", document)})
    # A connection string holds names and hosts beside its secret: there the names say which is which.
    if ";" in value and _keyed_in(value):
        return whole
    values = {part.partition("=")[2].strip() for part in value.split(",") if "=" in part}
    return {*whole, *values, *(one.split()[-1] for one in values if one.split())}


def _keyed_in(value: str) -> set[str]:
    """Return what stands inside a value under the name of a secret: in JSON, in a connection string, in options of any form."""
    document = _json_in(value)
    if document is not None:
        return {leaf for key, leaf in _leaves("", document) if _is_secret_key(key)}
    found: set[str] = set()
    for key in _KEY.finditer(value):
        given = _VALUE.match(value, key.end()) if _is_secret_key(key["key"]) else None
        if given is not None:
            text = given[0].strip("\"'")
            found |= {text, *text.split()[-1:], text.partition(",")[0], *_PARAMETER_VALUES.findall(text)}
    return found


def _json_in(value: str) -> Any:
    """Return the object or list that a value is as JSON; None when it is none."""
    if not value.lstrip().startswith(("{", "[")):
        return None
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None


def _leaves(key: str, document: Any) -> Iterator[tuple[str, str]]:
    """Yield each text of a document with the name that it stands under."""
    if isinstance(document, str):
        yield key, document
    elif isinstance(document, dict):
        for name, part in document.items():
            yield from _leaves(name, part)
    elif isinstance(document, list):
        for part in document:
            yield from _leaves(key, part)


def _is_secret_key(key: str) -> bool:
    return _SECRET_KEY.search(_CAPITAL.sub("_", key).replace("-", "_").replace(".", "_")) is not None


def _of_address(value: str) -> set[str]:
    found = {match["value"] for match in _PARAMETERS.finditer(value)}
    for start, end in _credentials(value):
        name, colon, password = value[start:end].partition(":")
        found |= {password} if colon else {name}
    return found


class _GuardedStream:
    """A text stream that never writes a secret; all else is the stream's own."""

    def __init__(self, stream: TextIO, redact: Redactor) -> None:
        self._stream = stream
        self._redact = redact

    def write(self, text: str) -> int:
        """Write the text without secrets; return the length that was asked for."""
        self._stream.write(self._redact(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each line without secrets."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def guard_output(environ: Mapping[str, str]) -> None:
    """Keep the secrets of `environ` out of stdout and stderr of this process, from now on and for good.

    Logs, warnings and tracebacks of any library are cleaned, also the one that ends the process: the interpreter prints it when every
    frame has been left, and threads, tasks and `atexit` may print even later. Reaches what Python writes. A library in C that writes to
    the file descriptor by itself is not seen; gRPC's core is given no secret. A child process guards itself: every program of the
    project begins with this.
    """
    secrets = secrets_in(environ)
    if not secrets:
        return
    redact = Redactor(secrets)
    # The two with underscores are what the interpreter falls back to while it ends.
    for name in ("stdout", "stderr", "__stdout__", "__stderr__"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, _GuardedStream):
            setattr(sys, name, cast(TextIO, _GuardedStream(stream, redact)))
