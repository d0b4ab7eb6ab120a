"""Optuna's samplers: minimise the number of layers, subject to a degradation within delta.

Every call rebuilds an in-memory Optuna study from the history. A trial's constraint is stored once and depends on
delta, while the same measurements serve every delta.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from budget_search.core.errors import UsageError
from budget_search.core.layers import LayerSet
from budget_search.core.trial import Trial
from budget_search.layer_search.strategies import SAMPLERS
from budget_search.layer_search.strategies.fixed import family_set
from budget_search.layer_search.strategies.problem import SearchProblem, unmeasured

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

SEEDS = (
    *((name, 1 / 2) for name in ("top", "odd-alternate", "even-alternate", "symmetric")),
    *((name, 1 / 4) for name in ("top", "odd-alternate", "even-alternate", "symmetric")),
    *((name, 3 / 4) for name in ("top", "symmetric")),
)
"""The first sets of a study: a fixed family and the share of the layers that it drops."""
WORST = 100.0
"""Degradation of a failed trial, in points: the whole scale, because samplers do not accept infinity."""


def propose(history: Sequence[Trial], problem: SearchProblem) -> list[LayerSet]:
    """Fixed families first, then ``problem.width`` sets at a time, until ``problem.evaluations`` are measured.

    Raises UsageError for an unknown sampler.
    """
    if problem.sampler not in SAMPLERS:
        raise UsageError(f"unknown sampler {problem.sampler!r}; allowed: {', '.join(SAMPLERS)}")
    seeds = unmeasured(seed_sets(problem), history, problem)
    return (seeds or ask(history, problem))[: problem.remaining_evaluations(history)]


def seed_sets(problem: SearchProblem) -> Iterator[LayerSet]:
    """The fixed families at several depths, starting with those that drop half of the layers."""
    for name, share in SEEDS:
        yield from family_set(name, round(share * problem.total), problem)


def ask(history: Sequence[Trial], problem: SearchProblem) -> list[LayerSet]:
    """Up to ``width`` unmeasured sets from the sampler; fewer if there are no more.

    The sampler's seed is derived from the problem's seed and the length of the history, so the result is reproducible.
    Within a call a proposed set is recorded as not holding, so that the sampler proposes a different one next (constant
    liar).
    """
    import optuna

    rng = random.Random(f"{problem.seed}/{len(history)}")
    proposals: list[LayerSet] = []
    with _quiet():
        sampler = _sampler(problem.sampler, rng.getrandbits(32))
        study = optuna.create_study(direction="minimize", sampler=sampler, pruner=optuna.pruners.NopPruner())
        known = [trial for trial in history if problem.allows(trial.layers)]
        # Samplers depend on the order of trials. Sorting by depth makes the result independent of the order of arrival.
        for trial in sorted(known, key=lambda trial: (-trial.layers.depth, trial.key)):
            study.add_trial(_record(trial.layers, problem.tolerance.degradation(trial), problem))
        seen = {trial.layers.kept for trial in known} | {tuple(range(problem.total))}
        for _ in range(problem.width if problem.free else 0):
            draw = study.ask(_space(problem))
            study.tell(draw, state=optuna.trial.TrialState.FAIL)
            kept = problem.fixed.union(index for index in problem.free if draw.params[_flag(index)])
            fresh = nearest_unseen(shrink_to_limits(kept, problem, rng), seen, problem, rng)
            if fresh is None:
                break
            proposals.append(fresh)
            seen.add(fresh.kept)
            study.add_trial(_record(fresh, problem.tolerance.delta + 1.0, problem))
    return proposals


def shrink_to_limits(kept: frozenset[int], problem: SearchProblem, rng: random.Random) -> frozenset[int]:
    """The sampled set, with randomly chosen layers dropped until it is within the limits."""
    spare = sorted(kept - problem.fixed)
    rng.shuffle(spare)
    while spare and len(kept) > 1 and not problem.limits.fits(LayerSet(tuple(sorted(kept)), problem.total)):
        kept -= {spare.pop()}
    return kept


def nearest_unseen(
    kept: frozenset[int], seen: set[tuple[int, ...]], problem: SearchProblem, rng: random.Random
) -> LayerSet | None:
    """The sampled set if it is new, or else one of the new sets that differ from it in the fewest layers; None if none.

    Samplers often repeat themselves in a small space, and a repeated evaluation adds no information.
    """
    ring, reached = {kept}, {kept}
    while ring:
        sets = [LayerSet(kept, problem.total) for kept in sorted(tuple(sorted(each)) for each in ring if each)]
        if fresh := [layers for layers in sets if layers.kept not in seen and problem.allows(layers)]:
            return rng.choice(fresh)
        ring = {each ^ {index} for each in ring for index in problem.free} - reached
        reached |= ring
    return None


def _record(layers: LayerSet, degradation: float, problem: SearchProblem) -> FrozenTrial:
    import optuna

    stays = set(layers.kept)
    return optuna.trial.create_trial(
        values=[float(layers.depth)],
        params={_flag(index): index in stays for index in problem.free},
        distributions=_space(problem),
        constraints={"degradation": min(degradation, WORST) - problem.tolerance.delta},
        # NSGA-II selects parents by generation, which only its own trials have. The history becomes generation 0.
        system_attrs={optuna.samplers.NSGAIISampler._get_generation_key(): 0},
    )


def _space(problem: SearchProblem) -> dict[str, BaseDistribution]:
    """One categorical parameter per free layer, True if the layer is kept."""
    from optuna.distributions import CategoricalDistribution

    return {_flag(index): CategoricalDistribution((True, False)) for index in problem.free}


def _flag(index: int) -> str:
    return f"layer_{index:02d}"


def _sampler(name: str, seed: int) -> BaseSampler:
    from optuna import samplers

    if name == "gp":
        return samplers.GPSampler(seed=seed)
    if name == "nsga2":
        return samplers.NSGAIISampler(seed=seed, population_size=10)
    if name == "random":
        return samplers.RandomSampler(seed=seed)
    return samplers.TPESampler(seed=seed)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Optuna's log messages and its warnings about experimental features, then restore both."""
    import optuna
    from optuna.exceptions import ExperimentalWarning

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)
