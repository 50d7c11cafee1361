#!/bin/bash
# Python 3.11's html.parser, and so Beautiful Soup 4 with it: one unknown marked section in a page, <![x[…]]>, ends the parsing in an error.
#
# HTML has no syntax errors: a browser takes <![x[ for a comment and goes on, as html5lib does. html.parser is documented as tolerant since its strict
# mode went, and tolerates <![CDATA[, <![if … and broken tags; for any other keyword it raises AssertionError, which Beautiful Soup turns into
# ParserRejectedMarkup. So a reader of pages of others needs that error in its except clause although it feeds plain text.
#
# Versions: beautifulsoup4 4.15.0, html5lib 1.1; Python 3.11, Linux x86-64.
# Seen:     html.parser: AssertionError: unknown status keyword 'x' in marked section; Beautiful Soup: ParserRejectedMarkup; html5lib: 'before after'
# Needs python3.11 and pip. Installs into a temporary folder. Exit code 1 when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check beautifulsoup4==4.15.0 html5lib==1.1
"$folder/venv/bin/python" - << 'PYTHON'
import sys
from html.parser import HTMLParser

from bs4 import BeautifulSoup

page = "<p>before <![x[y]]>after</p>"


def outcome(attempt: object) -> str:
    try:
        return repr(attempt())
    except Exception as error:  # the finding is which
        return f"{type(error).__name__}: {error}".splitlines()[0]


direct = outcome(lambda: HTMLParser().feed(page))
soup = outcome(lambda: BeautifulSoup(page, "html.parser").get_text()).partition(":")[0]
tolerant = outcome(lambda: BeautifulSoup(page, "html5lib").get_text())
print(f"html.parser: {direct}; Beautiful Soup: {soup}; html5lib: {tolerant}")
sys.exit(not (direct.startswith("AssertionError") and soup == "ParserRejectedMarkup" and tolerant == "'before after'"))
PYTHON
