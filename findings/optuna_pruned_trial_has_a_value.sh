#!/bin/bash
# Optuna 4.9.0: a trial that was pruned has a value, the last one it reported, though its objective never returned any.
#
# One expects None, as of a failed trial. So whoever looks for the best of `study.trials` by "has a value" may take a trial that was ended early, and compares
# numbers that are of another kind where what is reported on the way is not what the objective returns (say, a loss while learning, and a
# measure on held-out data). `study.best_trial` and the state tell them apart.
#
# Versions: optuna 4.9.0, SQLAlchemy 2.1.9; Python 3.11.
# Seen:     trial 0 COMPLETE 0.5
#           trial 1 PRUNED 0.1
#           least of all values: trial 1; best_trial: trial 0
# Needs python3.11 and pip. Installs into a temporary folder. Exit code 1 when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check optuna==4.9.0 SQLAlchemy==2.1.9
"$folder/venv/bin/python" - << 'PYTHON'
import sys

import optuna

optuna.logging.set_verbosity(optuna.logging.WARNING)
study = optuna.create_study(direction="minimize")


def objective(trial):
    if trial.number == 1:
        trial.report(0.1, step=1)
        raise optuna.TrialPruned
    return 0.5


study.optimize(objective, n_trials=2)
for trial in study.trials:
    print(f"trial {trial.number} {trial.state.name} {trial.value}")
least = min((trial for trial in study.trials if trial.value is not None), key=lambda trial: trial.value)
print(f"least of all values: trial {least.number}; best_trial: trial {study.best_trial.number}")
if (study.trials[1].value, least.number, study.best_trial.number) != (0.1, 1, 0):
    sys.exit("another behaviour than the one that this finding describes")
PYTHON
