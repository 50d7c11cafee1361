"""The adapter gate: decides whether a tuned adapter may answer anybody. Pure.

It looks at the adapter's weights, at the share of replay in its training, and at its answers beside those of the base and of what answers
now, to the same questions. It says *accepted*, *refused* or *undecided*, and decides nothing by luck: each claim must be shown.

    slice      claims, each over the questions of the slice
    task       right in more than `min_task_right`; better than the base; not worse than the live adapter by `task_margin`
    context    not worse than the base, nor than the live adapter, by `context_margin`
    retrieve   the same, by `context_margin`
    general    the same, by `general_margin`
    safety     the same, by `safety_margin`
    task and context, where questions have reference answers: their likelihood is not below the live adapter's by `likelihood_margin`

Accepted: all claims are shown, each with an e-value (evidence.py) of 1 / `false_accept`. Refused: the contrary of one is shown.
Undecided: neither, and what answers now goes on answering. Evidence may be looked at after every batch, so that more questions are asked
until the outcome is clear: an adapter that is worse by the margin or more passes with probability `false_accept` at most, however often
one looks.

How often it is wrong, by simulation of this code (`python -m tests.gate_simulation`; 1,000 draws a row): services/tuner/README.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from services.common.language.adapter_manifest import Outcome
from services.common.language.evaluation import CONTEXT, GENERAL, RETRIEVE, SAFETY, TASK
from services.tuner.evidence import Numbers, log_e_value, more_needed
from services.tuner.paired import Role

Kind = Literal["floor", "better", "no_worse"]
Measure = Literal["right", "likelihood"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterGateLimits:
    """What an adapter must hold to pass the adapter gate.

    Attributes:
        min_task_right: share of right answers on the task slice that must be exceeded.
        task_margin, context_margin, general_margin, safety_margin: by how much the share of right answers of a slice may be below that of
            the models compared with. One that is as good is wanted: it knows more than the slice asks.
        likelihood_margin: by how much the mean probability of a reference answer's token may be below the live adapter's.
        false_accept: with this probability at most a claim that is false is taken for shown.
        false_refuse: with this probability at most, over all claims, an adapter that is as good as what it is compared with is refused.
        min_replay_share: of what it was trained on.
        max_update_norm: Euclidean norm of any layer's update.
        first_questions: of each slice, asked before the first decision; each further batch is half of what was asked.
        max_questions: most of one slice.
    """

    min_task_right: float
    task_margin: float
    context_margin: float
    general_margin: float
    safety_margin: float
    likelihood_margin: float
    false_accept: float
    false_refuse: float
    min_replay_share: float
    max_update_norm: float
    first_questions: int
    max_questions: int

    def margin(self, name: str) -> float:
        """Return the margin of a slice."""
        margins = {TASK: self.task_margin, GENERAL: self.general_margin, SAFETY: self.safety_margin}
        return margins.get(name, self.context_margin)

    def next_size(self, asked: int, there: int) -> int:
        """Return how many questions of a slice have been asked after its next batch; `asked` when there are no more to ask."""
        wanted = max(self.first_questions, asked + asked // 2)
        return max(asked, min(wanted, there, self.max_questions))


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceAnswers:
    """How each model answered the first questions of a slice: a number a question, in one order; one may have been asked more than another.

    `right`: 1 or 0. `likelihood`: the mean probability of a token of the reference answer (geometric), NaN without one.
    """

    right: Mapping[Role, Sequence[float]]
    likelihood: Mapping[Role, Sequence[float]] = field(default_factory=dict)


Answers = Mapping[str, SliceAnswers]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What is known of an adapter before it answers: `losses` per step, `norms` per layer, `replay_share` of its training rows.

    `replay_share` is None for an adapter that was trained elsewhere: its answers have to speak for it.
    """

    losses: Sequence[float]
    norms: Mapping[str, float]
    replay_share: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What must be shown: of a slice, by a measure, against a model ("" for none), with the bound or margin that belongs to it."""

    slice: str
    kind: Kind
    against: Literal["base", "live", ""]
    bound: float
    measure: Measure = "right"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """How a claim stands.

    Attributes:
        claim: what must be shown.
        is_shown, is_refuted: whether it is, or its contrary.
        more: questions that it still needs, if they are like those before; None: these speak against it.
        num: questions that it was looked at with.
        candidate, other: means of the candidate and of what it is compared with, over those; NaN over none, and without another.
    """

    claim: Claim
    is_shown: bool
    is_refuted: bool
    more: int | None
    num: int
    candidate: float
    other: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What the gate says. `reasons`: sentences with their numbers, empty when accepted; `findings`: of every claim."""

    outcome: Outcome
    reasons: tuple[str, ...]
    findings: tuple[Finding, ...]

    def needs(self, name: str) -> set[Role]:
        """Return the models that a slice must be asked of further: those that a claim which is still open compares."""
        still_open = [each.claim for each in self.findings if each.claim.slice == name and not each.is_shown]
        against = {claim.against for claim in still_open} - {""}
        return {"candidate", *against} if still_open else set()  # type: ignore[arg-type] # mypy widens the set

    @property
    def questions_needed(self) -> int:
        """Questions of one slice that are still needed at least; 0 when that is decided or cannot be told."""
        return max((each.more or 0 for each in self.findings if not each.is_shown), default=0)


def refused_weights(candidate: Candidate, limits: AdapterGateLimits) -> list[str]:
    """Return why the adapter must not even be loaded, as sentences; empty when it may."""
    refusals = []
    broken = [step for step, loss in enumerate(candidate.losses, start=1) if not math.isfinite(loss)]
    if broken:
        refusals.append(f"the loss is NaN or infinite at {len(broken)} of {len(candidate.losses)} steps, first at step {broken[0]}")
    unsound = sorted(name for name, norm in candidate.norms.items() if not math.isfinite(norm))
    if unsound:
        refusals.append(f"the weights of {len(unsound)} of {len(candidate.norms)} layers hold NaN or infinity, e.g. {unsound[0]}")
    elif not candidate.norms:
        refusals.append("the adapter changes no layer")
    else:
        name, norm = max(candidate.norms.items(), key=lambda pair: pair[1])
        if norm > limits.max_update_norm:
            refusals.append(f"the update of {name} has norm {norm:.3g}, above the limit of {limits.max_update_norm:.3g}")
    return refusals


def decide(answers: Answers, candidate: Candidate, limits: AdapterGateLimits) -> Decision:
    """Return what is to be said of the adapter by the answers so far. May be asked after every batch.

    Args:
        answers: by slice; the slices of the task and of the context must be there. Without the role "live" no adapter is live.
        candidate: what is known of it besides.
        limits: what it must hold.
    """
    claims = [claim for name, each in answers.items() for claim in _claims(name, each, limits)]
    log_refuted = math.log(max(1, len(claims)) / limits.false_refuse)
    findings = tuple(_finding(claim, answers[claim.slice], -math.log(limits.false_accept), log_refuted) for claim in claims)
    missing = [name for name in (TASK, CONTEXT) if name not in answers]
    refusals = [*_refused_replay(candidate, limits), *(_refused(each) for each in findings if each.is_refuted)]
    if refusals:
        return Decision(outcome="refused", reasons=tuple(refusals), findings=findings)
    still_open = [
        *(f"the {name} slice has no question" for name in missing),
        *(_open(each) for each in findings if not each.is_shown),
    ]
    return Decision(outcome="undecided" if still_open else "accepted", reasons=tuple(still_open), findings=findings)


def _claims(name: str, answers: SliceAnswers, limits: AdapterGateLimits) -> list[Claim]:
    has_live, margin = "live" in answers.right, limits.margin(name)
    claims = []
    if name == TASK:
        claims.append(Claim(slice=name, kind="floor", against="", bound=limits.min_task_right))
        claims.append(Claim(slice=name, kind="better", against="base", bound=0.0))
    else:
        claims.append(Claim(slice=name, kind="no_worse", against="base", bound=margin))
    if has_live:
        claims.append(Claim(slice=name, kind="no_worse", against="live", bound=margin))
        if len(_likelihoods(answers)):
            claims.append(Claim(slice=name, kind="no_worse", against="live", bound=limits.likelihood_margin, measure="likelihood"))
    return claims


def _finding(claim: Claim, answers: SliceAnswers, log_shown: float, log_refuted: float) -> Finding:
    if claim.kind == "floor":
        left_N = np.asarray(answers.right.get("candidate", ()), dtype=np.float64)
        z_N, lowest = left_N - claim.bound, -claim.bound
        contrary_N, contrary_lowest = -z_N, claim.bound - 1.0
        other = math.nan
    else:
        left_N, right_N = _pairs(claim, answers)
        z_N, lowest = left_N - right_N + claim.bound, claim.bound - 1.0
        contrary_N, contrary_lowest = right_N - left_N, -1.0
        other = _mean(right_N)
    is_shown = log_e_value(z_N, lowest) >= log_shown
    return Finding(
        claim=claim,
        is_shown=is_shown,
        is_refuted=not is_shown and log_e_value(contrary_N, contrary_lowest) >= log_refuted,
        more=0 if is_shown else more_needed(z_N, lowest, log_shown),
        num=len(left_N),
        candidate=_mean(left_N),
        other=other,
    )


def _mean(values_N: Numbers) -> float:
    return float(values_N.mean()) if len(values_N) else math.nan


def _pairs(claim: Claim, answers: SliceAnswers) -> tuple[Numbers, Numbers]:
    """Return the candidate's numbers and those of what it is compared with, for the questions that both were asked."""
    if claim.measure == "likelihood":
        pairs_N2 = _likelihoods(answers)
        return pairs_N2[:, 0], pairs_N2[:, 1]
    against: Role = "live" if claim.against == "live" else "base"
    return _aligned(answers.right.get("candidate", ()), answers.right.get(against, ()))


def _likelihoods(answers: SliceAnswers) -> Numbers:
    """Return [N, 2]: candidate and live, of the questions with a reference answer."""
    candidate_N, live_N = _aligned(answers.likelihood.get("candidate", ()), answers.likelihood.get("live", ()))
    pairs_N2 = np.stack([candidate_N, live_N], axis=1)
    found: Numbers = pairs_N2[np.isfinite(pairs_N2).all(axis=1)]
    return found


def _aligned(left: Sequence[float], right: Sequence[float]) -> tuple[Numbers, Numbers]:
    num = min(len(left), len(right))
    return np.asarray(left[:num], dtype=np.float64), np.asarray(right[:num], dtype=np.float64)


def _refused_replay(candidate: Candidate, limits: AdapterGateLimits) -> list[str]:
    if candidate.replay_share is None or candidate.replay_share >= limits.min_replay_share:
        return []
    return [
        f"{candidate.replay_share:.2f} of what it was trained on are context-answering examples (replay), "
        f"below the least share of {limits.min_replay_share:.2f}"
    ]


_WHAT = {
    TASK: "the task slice is answered",
    CONTEXT: "answers from given context are",
    RETRIEVE: "answers from retrieved passages are",
    GENERAL: "general questions are answered",
    SAFETY: "the safety slice is answered",
}


def _refused(finding: Finding) -> str:
    claim = finding.claim
    if claim.kind == "floor":
        return f"{_WHAT[claim.slice]} right in {finding.candidate:.2f} of {finding.num} cases, below the floor of {claim.bound:.2f}"
    return f"{_subject(claim)} worse than {_name(claim)}: {_numbers(finding)}"


def _open(finding: Finding) -> str:
    claim = finding.claim
    if claim.kind == "floor":
        what = f"{_WHAT[claim.slice]} right in more than {claim.bound:.2f} of the cases: {finding.candidate:.2f} of {finding.num}"
    elif claim.kind == "better":
        what = f"{_subject(claim)} better than {_name(claim)}: {_numbers(finding)}"
    else:
        what = f"{_subject(claim)} at most {claim.bound:.2f} worse than {_name(claim)}: {_numbers(finding)}"
    if finding.more is None:
        return f"not shown: {what}; these do not speak for it"
    return f"not shown yet: {what}; about {finding.more} more like these would show it"


def _subject(claim: Claim) -> str:
    return f"the reference answers of the {claim.slice} slice are likely, and" if claim.measure == "likelihood" else _WHAT[claim.slice]


def _name(claim: Claim) -> str:
    return "the base's" if claim.against == "base" else "the live adapter's"


def _numbers(finding: Finding) -> str:
    what = "right" if finding.claim.measure == "right" else "probability of a token"
    return f"{finding.candidate:.2f} against {finding.other:.2f} {what}, of {finding.num} questions"
