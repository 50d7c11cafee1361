"""What must not be printed: the secrets among a process's variables, and text without them.

A secret is the value of a variable whose name says so (`AWS_SECRET_ACCESS_KEY`, `MLFLOW_TRACKING_PASSWORD`, `OTEL_EXPORTER_OTLP_HEADERS`,
`HF_TOKEN`, …), and the password inside any variable's address (`redis://:PASSWORD@host`, `…?password=PASSWORD`). Libraries print what they
were given, in messages that nobody foresees; so the text is cleaned where it leaves the process. Pure but for `guarded_output`.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TextIO, cast
from urllib.parse import quote, unquote

HIDDEN = "***"

# A shorter value hides more of the text than it protects; inside an address (`without_credentials`) any length is hidden.
_MIN_CHARS = 4
_SECRET_NAME = re.compile(
    r"(^|_)(PASSWORD|PASSWD|PASSPHRASE|SECRET|TOKEN|CREDENTIALS?|AUTHORIZATION|SAS_TOKEN|API_?KEY|ACCESS_KEY|ACCOUNT_KEY|PRIVATE_KEY"
    r"|CONNECTION_STRING)$|(^|_)SECRET_|_HEADERS$",
    re.IGNORECASE,
)
_NO_SECRETS = frozenset({"true", "false", "none", "null"})
_SECRET_PARAMETER = r"(?:password|passwd|secret|token|api_?key|access_?key|sig|signature|authorization)"
_PARAMETERS = re.compile(rf"(?P<name>[?&;]{_SECRET_PARAMETER}=)(?P<value>[^&\s]*)", re.IGNORECASE)
# A password may hold "@" and, when nobody has encoded it, "/"; in running text a blank or a quotation mark ends the address.
_CREDENTIALS = re.compile(r"""://(?:[^/\s"']*|[^/\s:@"']*:(?!\d+/)[^\s"']*)@""")
_CREDENTIALS_OF_VALUE = re.compile(r"://(?:[^/]*|[^/:@]*:(?!\d+/).*)@")


class Redactor:
    """Replaces known secrets, and whatever stands in the place of a password in an address, by asterisks."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        """`secrets` are values, not names; those of less than four characters are left out."""
        known = {form for secret in secrets for form in (secret, quote(secret, safe=""), unquote(secret))}
        longest_first = sorted((form for form in known if len(form) >= _MIN_CHARS), key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def __call__(self, text: str) -> str:
        """Return the text without secrets."""
        if self._known is not None:
            text = self._known.sub(HIDDEN, text)
        return without_credentials(text) if "://" in text else text


def without_credentials(text: str) -> str:
    """Return the text with the credentials of each address in it replaced: redis://***@host, https://host/?token=***."""
    return _PARAMETERS.sub(rf"\g<name>{HIDDEN}", _CREDENTIALS.sub(f"://{HIDDEN}@", text))


def holds_password(address: str) -> bool:
    """Return whether an address carries a name, a password or a token."""
    return without_credentials(address) != address


def secrets_in(environ: Mapping[str, str]) -> frozenset[str]:
    """Return the secrets among a process's variables."""
    found: set[str] = set()
    for name, value in environ.items():
        if _SECRET_NAME.search(name):
            found |= _parts_of(value)
        if "://" in value:
            found |= _of_address(value)
    return frozenset(value for value in found if value and value.lower() not in _NO_SECRETS)


def _parts_of(value: str) -> set[str]:
    """Return a secret value, and for lists such as `authorization=Bearer X,other=Y` the values in it: each may be printed alone."""
    values = {part.partition("=")[2].strip() for part in value.split(",") if "=" in part}
    return {value.strip(), *values, *(one.split()[-1] for one in (value, *values) if one.split())}


def _of_address(value: str) -> set[str]:
    found = {match["value"] for match in _PARAMETERS.finditer(value)}
    for match in _CREDENTIALS_OF_VALUE.finditer(value):
        name, colon, password = match[0][3:-1].partition(":")
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


@contextlib.contextmanager
def guarded_output(environ: Mapping[str, str]) -> Iterator[None]:
    """Keep the secrets of `environ` out of stdout and stderr of this process: logs, tracebacks and warnings of any library.

    Reaches what Python writes. A library in C that writes to the file descriptor by itself is not seen; gRPC's core is given no secret.
    """
    secrets = secrets_in(environ)
    if not secrets:
        yield
        return
    redact = Redactor(secrets)
    kept = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, _GuardedStream(stream, redact)) for stream in kept)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = kept
