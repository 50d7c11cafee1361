#!/bin/bash
# lancedb 0.40.0: with base_tokenizer="icu", the stop words of an English index are those of all languages, so "war", "son" and "man" find nothing.
#
# A full-text index takes a tokenizer and, apart from it, a language, English unless another one is named; remove_stop_words drops that language's stop
# words. One expects that the tokenizer decides where words end and nothing else. With "icu", which finds words in Chinese, Japanese and Thai texts, the
# list of stop words is another one too: German "die", "war" and "man", French "son", Spanish "todo", Dutch "van", single letters and the digit 1 are
# neither indexed nor looked for, whatever the language says. "Vitamin C" is found by its first word alone, a shop's "van" not at all. With
# remove_stop_words=False each word is found.
#
# Versions: lancedb 0.40.0 (pyarrow 26.0.1); Python 3.11.
# Seen:     simple: finds nothing for the
#           icu: finds nothing for 1, c, die, man, mine, son, the, todo, van, war
#           icu without stop words: finds nothing for -
# Needs python3.11 and pip. Installs into a temporary folder. Exit code 1 when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check lancedb==0.40.0 pyarrow==26.0.1
"$folder/venv/bin/python" - "$folder" << 'PYTHON'
import sys

import lancedb
import pyarrow as pa
from lancedb.index import FTS

WORDS = ["1", "c", "die", "man", "mine", "son", "the", "todo", "van", "vitamin", "war"]
WAYS = {
    "simple": FTS(language="English", base_tokenizer="simple", remove_stop_words=True),
    "icu": FTS(language="English", base_tokenizer="icu", remove_stop_words=True),
    "icu without stop words": FTS(language="English", base_tokenizer="icu", remove_stop_words=False),
}
lost = {}
database = lancedb.connect(f"{sys.argv[1]}/index")
for number, (name, index) in enumerate(WAYS.items()):
    table = database.create_table(f"words_{number}", pa.table({"text": WORDS}))
    table.create_index("text", config=index)
    lost[name] = [word for word in WORDS if not table.search(word, query_type="fts").limit(5).to_list()]
    print(f"{name}: finds nothing for {', '.join(lost[name]) or '-'}")
expected = {"simple": ["the"], "icu": [word for word in WORDS if word != "vitamin"], "icu without stop words": []}
if lost != expected:
    sys.exit("another behaviour than the one that this finding describes")
PYTHON
