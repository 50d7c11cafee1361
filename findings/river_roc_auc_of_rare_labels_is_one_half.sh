#!/bin/bash
# river 0.22.0: metrics.ROCAUC says 0.5 of a good model where what it predicts is rare.
#
# One expects an area under the ROC curve to depend on the order of the scores alone. River's streaming one counts at ten thresholds that
# stand evenly between 0 and 1. A model of clicks that happen once in a hundred says numbers below 0.1 of everything, so all of them fall
# between the first two thresholds and are ties. Nothing warns. RollingROCAUC, which keeps the scores of a window, has the exact value.
#
# Versions: river 0.22.0, Python 3.11.
# Seen:     labels 1 in 100, scores below 0.1:    ROCAUC 0.500  RollingROCAUC 0.944  by counting pairs 0.944
#           the same scores, ten times as large:  ROCAUC 0.840  RollingROCAUC 0.944  by counting pairs 0.944
# Needs python3.11 and pip. Installs into a temporary folder. Exit code 1 when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check river==0.22.0
"$folder/venv/bin/python" -W ignore - << 'PYTHON'
import random
import sys

from river import metrics

random.seed(1)
labels = [random.random() < 0.01 for _ in range(5000)]
scores = [min(0.099, max(0.0001, random.gauss(0.02 if label else 0.01, 0.005))) for label in labels]


def by_pairs(scores):
    ones = [score for label, score in zip(labels, scores) if label]
    zeros = [score for label, score in zip(labels, scores) if not label]
    return sum((one > zero) + 0.5 * (one == zero) for one in ones for zero in zeros) / (len(ones) * len(zeros))


seen = []
for what, factor in (("labels 1 in 100, scores below 0.1:  ", 1), ("the same scores, ten times as large:", 10)):
    streaming, rolling = metrics.ROCAUC(), metrics.RollingROCAUC(window_size=len(labels))
    scaled = [factor * score for score in scores]
    for label, score in zip(labels, scaled):
        streaming.update(label, score)
        rolling.update(label, score)
    found = [round(value, 3) for value in (streaming.get(), rolling.get(), by_pairs(scaled))]
    print("{}  ROCAUC {:.3f}  RollingROCAUC {:.3f}  by counting pairs {:.3f}".format(what, *found))
    seen.append(found)
if seen != [[0.5, 0.944, 0.944], [0.84, 0.944, 0.944]]:
    sys.exit("another behaviour than the one that this finding describes")
PYTHON
