#!/bin/bash
# ranx 0.3.21 and trec_eval (pytrec_eval-terrier 0.5.11, by ir-measures 0.4.3): of equal scores, one takes the order in which the run was made,
# the other the ids from the last letter to the first.
#
# One expects the same qrels and the same run to have the same nDCG and the same reciprocal rank whoever computes them, and a ranker that says
# the same of everything to do no better than chance. Whoever writes the right document first, as lists of a positive and its negatives are
# written, gets a perfect score from ranx for a constant score; trec_eval gives what the ids' spelling gives, here the worst or the best.
# Quantised scores, word counts and votes have many ties.
#
# Versions: ranx 0.3.21, ir-measures 0.4.3, pytrec_eval-terrier 0.5.11; Python 3.11.
# Seen:     all equal, right one first, named a: ranx nDCG@10 1.000 RR 1.000; trec_eval 0.387 0.200
#           all equal, right one last, named z:  ranx nDCG@10 0.387 RR 0.200; trec_eval 1.000 1.000
# Needs python3.11 and pip. Installs into a temporary folder. Exit code 1 when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check ranx==0.3.21 ir-measures==0.4.3 pytrec_eval-terrier==0.5.11
"$folder/venv/bin/python" -W ignore - << 'PYTHON'
import sys

import ir_measures
from ir_measures import RR, nDCG
from ranx import Qrels, Run, evaluate

OTHERS = ["m", "n", "o", "p"]
seen = []
for said, right, documents in (
    ("right one first, named a:", "a", ["a", *OTHERS]),
    ("right one last, named z: ", "z", [*OTHERS, "z"]),
):
    qrels, run = {"q": {right: 1}}, {"q": dict.fromkeys(documents, 1.0)}
    of_ranx = evaluate(Qrels(qrels), Run(run), ["ndcg@10", "mrr"])
    of_trec = ir_measures.calc_aggregate([nDCG @ 10, RR], qrels, run)
    numbers = [round(float(one), 3) for one in (of_ranx["ndcg@10"], of_ranx["mrr"], of_trec[nDCG @ 10], of_trec[RR])]
    print("all equal, {} ranx nDCG@10 {:.3f} RR {:.3f}; trec_eval {:.3f} {:.3f}".format(said, *numbers))
    seen.append(numbers)
if seen != [[1.0, 1.0, 0.387, 0.2], [0.387, 0.2, 1.0, 1.0]]:
    sys.exit("another behaviour than the one that this finding describes")
PYTHON
