"""The trials of a search, in a SQLite file by Optuna: which values come next, what came of them, and what a killed search left behind.

Values are drawn by TPE (Bergstra 2011; multivariate, Falkner 2018), each trial with a seed of its own made from the search's seed and the
number of trials before it. So a search that was killed goes on as if it had not been, and one process draws the same values each time.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import sqlite3
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from services.common.platform.errors import ConfigurationError
from services.trainer.search.measure import PORTIONS, Losses
from services.trainer.search.space import Parameter, Space

optuna.logging.set_verbosity(optuna.logging.WARNING)

FILE_NAME, LOCK_NAME = "search.db", "search.lock"
Pruner = Literal["median", "halving", "none"]
PRUNERS: tuple[Pruner, ...] = ("median", "halving", "none")
STARTUP_TRIALS = 8
"""So many trials draw at random before TPE has enough to go by."""
_NAME = "search"
_MAX_ATTEMPTS = 2
_BUSY_S = 60
# Attributes of the study and of trials.
_FINGERPRINT, _START = "fingerprint", "start"
IS_START, INTERRUPTED, REASON, MEASURES, LOSSES, SECONDS, SIZE, SAME_AS = (
    "is_start", "interrupted", "reason", "measures", "losses", "seconds", "parameters", "same_as"
)  # fmt: skip
_ATTEMPT, _WORKER = "attempt", "worker"


class Finished(NamedTuple):
    """A trial that was measured: its number, what it is worth, and what was noted of it, by name."""

    number: int
    value: float
    noted: dict[str, Any]


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Hold a search's folder, which is made, for one process; the lock goes with the process, however it ends.

    Raises:
        ConfigurationError: another process holds it, or it cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = (out / LOCK_NAME).open("a")
    except OSError as error:
        raise ConfigurationError(f"{out}: cannot be written ({error.strerror})") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigurationError(f"{out}: another search runs there; wait for it, or give another OUT") from error
        yield


class Study:
    """Trials in a file; several processes may have one open."""

    def __init__(self, out: Path, space: Space, *, seed: int, pruner: Pruner, fingerprint: str, worker: int | None = None) -> None:
        """Open the study of a folder, or begin it.

        Args:
            out: the folder.
            space: what is searched.
            seed: of what is drawn.
            pruner: what ends a trial early.
            fingerprint: of all that decides what a trial is worth; empty: not looked at.
            worker: the number of this process among several that draw at the same time; None: there is one.
        Raises:
            ConfigurationError: the file is of another search, or none of this program; says what to do.
        """
        self.space, self._seed, self._worker = space, seed, worker
        self._begun: dict[int, Trial] = {}
        self._lock_path = out / f"{FILE_NAME}.lock"
        path = out / FILE_NAME
        advice = f"search with those, or delete the folder {out} to begin anew"
        try:
            self._storage = optuna.storages.RDBStorage(f"sqlite:///{path.resolve()}", engine_kwargs={"creator": lambda: _connected(path)})
            self._study = optuna.create_study(
                storage=self._storage, study_name=_NAME, direction="minimize", load_if_exists=True, pruner=_pruner(pruner)
            )
            kept = self._study.user_attrs.get(_FINGERPRINT)
            if fingerprint and kept is None:
                self._study.set_user_attr(_FINGERPRINT, fingerprint)
            elif fingerprint and kept != fingerprint:
                raise ConfigurationError(f"{path}: is of another search: events, spec, space, options or program differ; {advice}")
        except (SQLAlchemyError, RuntimeError) as error:
            raise ConfigurationError(f"{path}: cannot be read ({' '.join(str(error).split())[:200]}); {advice}") from error

    @property
    def start(self) -> dict[str, Any] | None:
        """What was measured of the spec that the search starts from; None before `set_start`."""
        found: dict[str, Any] | None = self._study.user_attrs.get(_START)
        return found

    def set_start(self, measures: Mapping[str, Any], losses: Sequence[Losses], *, parameters: int, seconds: float) -> None:
        """Keep what the start is worth; where the space holds it, it is the first trial, which TPE and pruner go by."""
        noted = {MEASURES: dict(measures), LOSSES: list(losses), SIZE: parameters, SECONDS: round(seconds, 2)}
        values = self.space.start_values()
        if values is not None and not self._study.trials:
            trial = create_trial(
                state=TrialState.COMPLETE,
                value=1.0,
                params={key: _stored(self.space.parameters[key], value) for key, value in values.items()},
                distributions={key: distribution_of(self.space.parameters[key]) for key in values},
                user_attrs=noted | {IS_START: True},
                intermediate_values=dict.fromkeys(range(1, len(losses) + 1), 1.0),
            )
            self._study.add_trial(trial)
        self._study.set_user_attr(_START, noted)

    def take_up(self) -> int:
        """Close the trials that a dead process left running, and put each once more; return how many. No other process may be at work."""
        left = [trial for trial in self._study.trials if trial.state == TrialState.RUNNING]
        for trial in left:
            self.end_dead(trial.number, "the process that ran it ended before it did, twice: it was killed, or memory was short")
        return len(left)

    def end_dead(self, number: int, reason: str) -> None:
        """Close a trial whose process is gone: it is tried once more, then it has failed."""
        trial = self._study.trials[number]
        attempt = int(trial.user_attrs.get(_ATTEMPT, 1))
        self._note(number, {REASON: reason} if attempt >= _MAX_ATTEMPTS else {INTERRUPTED: True})
        self._study.tell(number, state=TrialState.FAIL)
        if attempt < _MAX_ATTEMPTS:
            self._study.enqueue_trial(trial.params, user_attrs={_ATTEMPT: attempt + 1})

    def end_of_worker(self, worker: int, reason: str) -> int | None:
        """Close the trial that a dead worker ran; return its number, None where it ran none."""
        running = (trial for trial in self._study.trials if trial.state == TrialState.RUNNING)
        own = next((trial.number for trial in running if trial.user_attrs.get(_WORKER) == worker), None)
        if own is not None:
            self.end_dead(own, reason)
        return own

    def put_off(self, number: int) -> None:
        """Close a trial that the time limit ended; a later search takes it up."""
        params = self._begun[number].params
        self._close(number, {INTERRUPTED: True}, state=TrialState.FAIL)
        self._study.enqueue_trial(params, user_attrs={_ATTEMPT: 1})

    def next(self, most: int) -> tuple[int, dict[str, Any]] | None:
        """Begin the next trial; return its number, and its values by key. None: as many as wanted are done or under way.

        Args:
            most: trials, the start not counted.
        """
        with self._alone():
            trials = self._study.trials
            num_drawn = sum(is_counted(trial) for trial in trials)
            if num_drawn >= most:
                return None
            self._study.sampler = self._sampler(num_drawn)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                trial = self._study.ask()
                trial.set_user_attr(_WORKER, self._worker)
                self._begun[trial.number] = trial
                return trial.number, self._values(trial)

    def _values(self, trial: Trial) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, parameter in self.space.parameters.items():
            if self.space.applies(key, values):
                values[key] = _drawn(trial, key, parameter)
        return values

    def _sampler(self, num_drawn: int) -> optuna.samplers.BaseSampler:
        seed = int.from_bytes(hashlib.sha256(f"{self._seed}:{num_drawn}".encode()).digest()[:4], "big")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=STARTUP_TRIALS, multivariate=True, group=True, constant_liar=self._worker is not None
            )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes from beginning a trial meanwhile, or more would begin than are wanted."""
        with self._lock_path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def same_as(self, number: int) -> Finished | None:
        """Return a finished trial of the values of one that is begun; training is a function of them."""
        params = self._begun[number].params
        done = (one for one in self._study.trials if one.state == TrialState.COMPLETE and one.params == params)
        found = next(done, None)
        return None if found is None else Finished(found.number, float(found.value or 0.0), dict(found.user_attrs))

    def should_prune(self, number: int, step: int, value: float) -> bool:
        """Note a portion's value; say whether the trial is not worth going on with."""
        trial = self._begun[number]
        trial.report(value, step)
        return bool(trial.should_prune())

    def complete(self, number: int, value: float, noted: Mapping[str, Any]) -> None:
        """Close a trial that was measured."""
        self._close(number, noted, value=value)

    def prune(self, number: int, noted: Mapping[str, Any]) -> None:
        """Close a trial that was ended early."""
        self._close(number, noted, state=TrialState.PRUNED)

    def fail(self, number: int, reason: str) -> None:
        """Close a trial that could not be measured."""
        self._close(number, {REASON: reason[:2_000]}, state=TrialState.FAIL)

    def _close(self, number: int, noted: Mapping[str, Any], *, value: float | None = None, state: TrialState | None = None) -> None:
        self._note(number, noted)
        self._study.tell(number, value, state=state)
        self._begun.pop(number, None)

    def _note(self, number: int, noted: Mapping[str, Any]) -> None:
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._storage.get_study_id_from_name(_NAME), number)
        for name, value in noted.items():
            self._storage.set_trial_user_attr(trial_id, name, value)

    def trials(self) -> list[FrozenTrial]:
        """Return all trials, those that were interrupted left out."""
        return [trial for trial in self._study.trials if trial.state.is_finished() and not trial.user_attrs.get(INTERRUPTED)]

    def values_of(self, trial: FrozenTrial) -> dict[str, Any]:
        """Return the values of a trial by key, as a spec has them."""
        chosen = {key for key, parameter in self.space.parameters.items() if parameter.choice is not None}
        ordered = (key for key in self.space.parameters if key in trial.params)
        return {key: json.loads(trial.params[key]) if key in chosen else trial.params[key] for key in ordered}

    def importances(self) -> dict[str, float]:
        """Return what share of the differences between trials each parameter explains, by PED-ANOVA (Watanabe 2023); {} of too few trials.

        Parameters of some networks are looked at among the trials of these alone.
        """
        done = [trial for trial in self._study.trials if trial.state == TrialState.COMPLETE]
        everywhere = [key for key in self.space.parameters if all(key in trial.params for trial in done)]
        found: dict[str, float] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            for keys in (everywhere, *([key] for key in self.space.parameters if key not in everywhere)):
                if len([trial for trial in done if all(key in trial.params for key in keys)]) < LEAST_FOR_IMPORTANCE or not keys:
                    continue
                shares = evaluator.evaluate(self._study, params=list(dict.fromkeys((*everywhere, *keys))))
                found |= {key: shares[key] for key in keys}
        total = sum(found.values())
        return {key: round(found[key] / total, 4) for key in sorted(found, key=lambda key: -found[key])} if total > 0 else {}


LEAST_FOR_IMPORTANCE = 10


def is_counted(trial: FrozenTrial) -> bool:
    """Say whether a trial is one of those that were wanted: not the start, nor one that waits or was interrupted."""
    attributes = trial.user_attrs
    return trial.state != TrialState.WAITING and not attributes.get(IS_START) and not attributes.get(INTERRUPTED)


def _connected(path: Path) -> sqlite3.Connection:
    """Return a connection that outlives a killed process without waiting for the disk at each commit; a cut of power may cost trials."""
    connection = sqlite3.connect(path, timeout=_BUSY_S)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    return connection


def _stored(parameter: Parameter, value: Any) -> Any:
    return json.dumps(value) if parameter.choice is not None else value


def distribution_of(parameter: Parameter) -> BaseDistribution:
    """Return Optuna's distribution of a parameter; a choice is its JSON, since Optuna knows no lists."""
    if parameter.choice is not None:
        return CategoricalDistribution([json.dumps(value) for value in parameter.choice])
    if parameter.ints is not None:
        return IntDistribution(*parameter.ints, log=parameter.log, step=parameter.step or 1)
    low, high = parameter.floats or (0.0, 0.0)
    return FloatDistribution(low, high, log=parameter.log)


def _drawn(trial: Trial, key: str, parameter: Parameter) -> Any:
    if parameter.choice is not None:
        return json.loads(trial.suggest_categorical(key, [json.dumps(value) for value in parameter.choice]))
    if parameter.ints is not None:
        return trial.suggest_int(key, *parameter.ints, log=parameter.log, step=parameter.step or 1)
    return trial.suggest_float(key, *(parameter.floats or (0.0, 0.0)), log=parameter.log)


def _pruner(name: Pruner) -> optuna.pruners.BasePruner:
    if name == "none":
        return optuna.pruners.NopPruner()
    if name == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
    # The first portions are learned by rows that know nothing yet.
    return optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=PORTIONS // 4)
