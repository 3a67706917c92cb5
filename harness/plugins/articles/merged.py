"""One verdict a claim over all places where it is judged: studies, models and data sets.

    (verdict,) = merge(verdicts_on_one_claim).judged
    verdict.judgement.decision  # "depends"
    verdict.depends_on  # ("data", "batch size")

The verdict says what is sure of some place, although among many places one is soon on the wrong side by chance: does
the claim hold somewhere, does it fail somewhere? If both, it depends on what tells these places apart. It is refuted if
it surely fails somewhere and surely holds nowhere. It is supported if it surely holds somewhere, if more than half of
the places support it, and if none decides otherwise, not even by chance: one counterexample refutes a claim, one
example does not support it. A place that can't test the claim (it has one seed, its runs differ in more than the
methods) is listed, and counts for nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from harness import units
from harness.grouping import grouped
from harness.plugins.articles.apart import Distinction, distinctions
from harness.plugins.articles.claims import DEPENDS, OPEN, REFUTED, Claim, Decision, Judgement, Part, Verdict, names
from harness.report.planned import PlanState, weakest


class JudgedClaim(Protocol):
    """A verdict, of one place or of several."""

    @property
    def claim(self) -> Claim: ...

    @property
    def place(self) -> tuple[str, str, str]: ...

    @property
    def judgement(self) -> Judgement: ...

    @property
    def decision(self) -> Decision: ...

    @property
    def fresh(self) -> bool: ...

    @property
    def plan(self) -> PlanState: ...

    @property
    def command(self) -> str: ...


@dataclass(frozen=True)
class MergedVerdict:
    """The verdict on a claim over several places.

    judgement: its effect, seeds and items are those of `representative`, its records those of all places with the study
    before each name if there are several studies. places: the verdicts behind it, the place that was designed to decide
    the claim first. representative: of these, the one that contradicts the claim most if it depends; else the one that
    was designed to decide the claim, if it decides as all do; else the one that comes closest to another decision (if
    it is not decided: the one with the narrowest interval).
    depends_on: where the claim depends, the settings that tell apart where it holds and where it fails; study where
    none that is recorded does, setting where a place alone depends and its settings are unknown.
    """

    claim: Claim
    judgement: Judgement
    places: tuple[Verdict, ...]
    representative: Verdict
    depends_on: tuple[str, ...] = ()

    @property
    def place(self) -> tuple[str, str, str]:
        return self.representative.place

    @property
    def fresh(self) -> bool:
        return self.representative.fresh

    @property
    def command(self) -> str:
        return self.representative.command

    @property
    def plan(self) -> PlanState:
        """The weakest of the places behind the verdict."""
        return weakest(verdict.plan for verdict in self.counted)

    @property
    def decision(self) -> Decision:
        """What is decided by now: nothing before the plans of all studies are finished."""
        return OPEN if self.plan.word == "interim" else self.judgement.decision

    @property
    def counted(self) -> list[Verdict]:
        """The places behind the verdict: those that test the claim; if none does, all."""
        return _counted(self.places)

    @property
    def agreeing(self) -> list[Verdict]:
        """Of the places, those with the decision of the merged verdict."""
        return [verdict for verdict in self.counted if verdict.judgement.decision == self.judgement.decision]

    @property
    def studies(self) -> list[str]:
        """The studies behind the verdict, each once."""
        return list(dict.fromkeys(verdict.place[0] for verdict in self.counted))


@dataclass(frozen=True)
class ArticleVerdicts:
    """The verdicts on an article's claims, in its order.

    judged: of the claims with an effect in some place. not_judged: of each other claim the verdict that has most to
    say on what is missing.
    """

    judged: list[MergedVerdict]
    not_judged: list[Verdict]

    @property
    def places(self) -> list[Verdict]:
        """The verdicts behind `judged`."""
        return [verdict for merged in self.judged for verdict in merged.places]


def merge(verdicts: Iterable[Verdict], designed: Mapping[str, str] | None = None) -> ArticleVerdicts:
    """One verdict for each claim of `verdicts`, which are of any places.

    A claim that is counted on a model's shape is no better known in many places, so it has one.

    designed: by claim, the study that was designed to decide it, without the folders before its name.
    """
    by_claim = grouped((verdict.claim.name, verdict) for verdict in verdicts)
    judged, not_judged = [], []
    for name, each in by_claim.items():
        estimated = [verdict for verdict in each if verdict.judgement.effect is not None]
        if estimated:
            study = (designed or {}).get(name)
            places = sorted(estimated, key=lambda verdict: (not _is_of(verdict, study), verdict.place))
            judged.append(_merged(places[:1] if places[0].claim.counted_on else places, study))
        else:
            not_judged.append(max(each, key=lambda verdict: len(verdict.judgement.records)))
    return ArticleVerdicts(judged, not_judged)


def merged_decision(judgements: Sequence[Judgement]) -> Decision:
    """The decision on one claim by its judgements in several places, in any order."""
    somewhere = sure_somewhere(judgements)
    if len(somewhere) != 1:
        return DEPENDS if somewhere else OPEN
    (decision,) = somewhere
    if decision == REFUTED:
        return decision
    decisions = [judgement.decision for judgement in judgements if tests(judgement)]
    contradicted = set(decisions) - {OPEN, decision}
    return decision if not contradicted and 2 * decisions.count(decision) > len(decisions) else OPEN


def sure_somewhere(judgements: Sequence[Judgement]) -> set[Decision]:
    """The decisions that surely hold in some place, although among many places a few are decided by chance.

    Those of a place that is sure by itself, and of the other places those that Simes' test finds: of n places k decide
    alike, each by an interval that is corrected for n / k places. So it is enough that all places decide alike.
    """
    sure = surely(judgements)
    left = [judgement for judgement, decision in zip(judgements, sure, strict=True) if decision == OPEN]
    left = [judgement for judgement in left if tests(judgement)]
    somewhere = set(sure) - {OPEN}
    for alike in range(2, 1 + sum(judgement.decision != OPEN for judgement in left)):
        counts = Counter(_corrected(judgement, len(left) / alike) for judgement in left)
        somewhere |= {decision for decision, count in counts.items() if decision != OPEN and count >= alike}
    return somewhere


def surely(judgements: Sequence[Judgement]) -> list[Decision]:
    """Each place's decision by intervals that are corrected for the number of places that test the claim, by Holm's
    method."""
    sure: list[Decision] = [OPEN] * len(judgements)
    waiting = {i for i, judgement in enumerate(judgements) if tests(judgement)}
    while waiting:
        decided = {i: decision for i in waiting if (decision := _corrected(judgements[i], len(waiting))) != OPEN}
        if not decided:
            break
        for i, decision in decided.items():
            sure[i] = decision
        waiting -= decided.keys()
    return sure


def tests(judgement: Judgement) -> bool:
    """Whether the place could decide the claim: it did, or an interval of its effect was held against the claim."""
    effect = judgement.effect
    held = judgement.corrected is not None and effect is not None and not math.isnan(effect.low)
    return judgement.decision != OPEN or held


def place_label(verdict: Verdict, among: Sequence[Verdict]) -> str:
    """The study, if `among` has several; with model and data too where the study has several places."""
    study, model, data = verdict.place
    same = [other.place for other in among if other.place[0] == study]
    more = ", ".join(part for i, part in ((1, model), (2, data)) if len({place[i] for place in same}) > 1)
    if len(same) == len(among) and more:
        return more
    return f"{study} ({more})" if more else study


def _merged(places: Sequence[Verdict], designed: str | None) -> MergedVerdict:
    """The verdict over `places`, which all have an effect. designed: the study that was designed to decide it."""
    counted = _counted(places)
    judgements = [verdict.judgement for verdict in counted]
    decision = merged_decision(judgements)
    representative = _representative(counted, decision, designed)
    apart = _apart(counted) if decision == DEPENDS else []
    unnamed = ["setting"] if decision == DEPENDS and not apart else []
    judgement = representative.judgement
    if len(counted) > 1:
        judgement = replace(
            judgement,
            decision=decision,
            records=_records(counted),
            why=_why(counted, decision, [one.text for one in apart] or unnamed),
            by_seeds=False,  # how many seeds of which place would do depends on all places
            corrected=None,
        )
    if rest := len(places) - len(counted):
        judgement = replace(judgement, why="; ".join(filter(None, [judgement.why, _untested(rest)])))
    depends_on = tuple([one.words for one in apart] or unnamed)
    return MergedVerdict(representative.claim, judgement, tuple(places), representative, depends_on)


def _untested(places: int) -> str:
    return f"{units.plural(places, 'more place')} can't test it"


def _is_of(verdict: Verdict, study: str | None) -> bool:
    """study: without the folders before its name."""
    return verdict.place[0].rpartition("/")[2] == study


def _corrected(judgement: Judgement, places: float) -> Decision:
    """The decision if the interval is widened for this many places. One that is open stays so, whatever widens it."""
    return OPEN if judgement.decision == OPEN else judgement.among(places)


def _counted(places: Sequence[Verdict]) -> list[Verdict]:
    return [verdict for verdict in places if tests(verdict.judgement)] or list(places)


def _representative(counted: Sequence[Verdict], decision: Decision, designed: str | None) -> Verdict:
    of_study = [verdict for verdict in counted if _is_of(verdict, designed)]
    if decision != DEPENDS and len(of_study) == 1 and of_study[0].judgement.decision == decision:
        return of_study[0]
    if decision == OPEN:
        return min(counted, key=_width)
    if decision == DEPENDS:
        return min(
            (verdict for verdict in counted if verdict.judgement.decision != OPEN),
            key=lambda verdict: verdict.judgement.inside,
        )
    agreeing = [verdict for verdict in counted if verdict.judgement.decision == decision]
    return min(agreeing, key=lambda verdict: abs(verdict.judgement.inside))


def _width(verdict: Verdict) -> float:
    effect = verdict.judgement.effect
    if effect is None or math.isnan(effect.low):
        return math.inf
    return verdict.judgement.scaled(effect.high) - verdict.judgement.scaled(effect.low)


def _apart(counted: Sequence[Verdict]) -> list[Distinction]:
    """The settings that tell the places, and the settings of a place, apart that decide differently."""
    sure = {DEPENDS, *sure_somewhere([verdict.judgement for verdict in counted])}
    return distinctions(part for verdict in counted if verdict.judgement.decision in sure for part in _parts(verdict))


def _parts(verdict: Verdict) -> Sequence[Part]:
    _, model, data = verdict.place
    settings = {"model": frozenset({model}), "data": frozenset({data})}
    return verdict.parts or [Part(verdict.judgement.decision, settings)]


def _why(counted: Sequence[Verdict], decision: Decision, depends_on: Sequence[str]) -> str:
    """Which places decide what, and what of it may be chance; a place's own reasons stand with its own verdict."""
    by_decision = grouped((verdict.judgement.decision, place_label(verdict, counted)) for verdict in counted)
    sure = {OPEN, *sure_somewhere([verdict.judgement for verdict in counted])}
    parts = []
    for one in sorted(by_decision, key=lambda one: (one == OPEN, one != decision)):  # what is open comes last
        chance = "" if one in sure else f", which of {units.plural(len(counted), 'place')} may be chance"
        parts.append(f"{'mixed' if one == DEPENDS else one} in {', '.join(by_decision[one])}{chance}")
    text = "; ".join(parts)
    return f"Depends on {units.listed(depends_on)}: {text}" if depends_on else f"{text[0].upper()}{text[1:]}"


def _records(counted: Sequence[Verdict]) -> tuple[str, ...]:
    studies = {verdict.place[0] for verdict in counted}
    if len(studies) == 1:
        return names([verdict.judgement for verdict in counted])
    return tuple(dict.fromkeys(f"{v.place[0]}/{name}" for v in counted for name in v.judgement.records))
