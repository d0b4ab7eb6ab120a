"""Further seeds for the answers of a search, to bring their upper bounds within delta (``--certify N``).

After the answer is found, the baseline and the answer are fine-tuned with one further seed after the other, N at most,
and the bound is looked at after each pair. These looks are planned beforehand and share the error that the answer's
position among the candidates leaves it: a tenth of it goes in equal parts to the looks before the last, the rest to
the last one. By Bonferroni's inequality the error over all looks stays within the level if the further seeds were
asked for from the beginning. Asked for after a search without them, they add one look, which is not accounted for:
with normal noise, an error of 2.5 % then becomes 3.4 %. Most of the error is kept for the last look, as in the
group-sequential design of Haybittle (1971) and Peto et al. (1976), because the looks are so alike
that equal parts would cost most of what the further seeds gain.
"""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist

from budget_search.core.layers import LayerSet
from budget_search.core.trial import FULL_RUNG, TrialKey
from budget_search.layer_search.confirmation import FUTILITY
from budget_search.layer_search.state import SearchState
from budget_search.layer_search.verdict import Judgement


def wanted_runs(state: SearchState, delta: float) -> list[TrialKey]:
    """The pair of runs after which the bound of the answer to delta (points) is looked at next.

    Empty if the answer is certified, if it is the full model, or if no further seed is left or likely to certify it.
    """
    settings = state.settings
    if not settings.certify:
        return []
    layers = state.answer(delta)
    further = [seed for seed in settings.further_seeds if seed not in state.confirmations.scores(layers)]
    if layers.is_full or not further:
        return []
    judgement = state.judge(layers, delta)
    last = state.confidence_of(layers, delta, settings.certify)
    if judgement.certified(delta) or not can_certify(judgement, delta, len(further), last):
        return []
    return [TrialKey(each, FULL_RUNG, further[0]) for each in (LayerSet.full(settings.total), layers)]


def can_certify(judgement: Judgement, delta: float, further: int, confidence: float) -> bool:
    """Whether ``further`` more seeds bring the bound within delta (points) with a probability of ``FUTILITY`` or more.

    ``confidence`` is that of the bound after all of them. The mean may change by what further seeds are expected to
    change it; the variances are taken as they are measured now, with the degrees of freedom of two more scores a seed.
    """
    if judgement.collapsed:
        return False
    if judgement.seed_variance is None:
        return True
    seeds = judgement.seeds + further
    seed_variance = judgement.seed_variance * judgement.seeds / seeds
    change = NormalDist().inv_cdf(1 - FUTILITY) * math.sqrt(judgement.seed_variance - seed_variance)
    hoped_for = replace(
        judgement,
        degradation=judgement.degradation - change,
        seed_variance=seed_variance,
        seed_degrees_of_freedom=judgement.seed_degrees_of_freedom + 2 * further,
        seeds=seeds,
        confidence=confidence,
    )
    return hoped_for.certified(delta)
