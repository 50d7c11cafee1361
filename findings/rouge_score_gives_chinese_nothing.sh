#!/bin/bash
# rouge-score 0.1.2: an answer in Chinese or Russian that is the reference word for word has ROUGE 0, and two different ones with the same
# number in them have ROUGE 1.
#
# One expects any text to have ROUGE 1 against itself. The default tokenizer keeps a to z and 0 to 9 and takes everything else for a blank,
# so a sentence in another script has no words, or its digits alone. A judge that averages ROUGE over languages punishes the others, and one
# of answers with a number in them cannot tell right from wrong. A tokenizer of one's own is the way out (argument `tokenizer`).
#
# Versions: rouge-score 0.1.2, Python 3.11.
# Seen:     the same text against itself: en 1.0  zh 0.0  ru 0.0  de 1.0
#           "the fee is 20" against "the fine is 20" in Chinese: 1.0
#           words of "Gebühr über 2": ['geb', 'hr', 'ber', '2']
# Needs python3.11 and pip. Installs into a temporary folder. Exit code 1 when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check rouge-score==0.1.2
"$folder/venv/bin/python" -W ignore - << 'PYTHON'
import sys

from rouge_score import rouge_scorer, tokenize

SAME = {
    "en": "late films cost two euros",
    "zh": "影片逾期每天罚款两欧元",
    "ru": "фильм с опозданием стоит два евро",
    "de": "die Gebühr beträgt zwei Euro",
}
scorer = rouge_scorer.RougeScorer(["rougeL"])
itself = {language: float(scorer.score(text, text)["rougeL"].fmeasure) for language, text in SAME.items()}
print("the same text against itself:", "  ".join(f"{language} {value}" for language, value in itself.items()))
other = float(scorer.score("会员费是20元", "逾期罚款是20元")["rougeL"].fmeasure)
print(f'"the fee is 20" against "the fine is 20" in Chinese: {other}')
words = tokenize.tokenize("Gebühr über 2", None)
print('words of "Gebühr über 2":', words)
if itself != {"en": 1.0, "zh": 0.0, "ru": 0.0, "de": 1.0} or other != 1.0 or words != ["geb", "hr", "ber", "2"]:
    sys.exit("another behaviour than the one that this finding describes")
PYTHON
