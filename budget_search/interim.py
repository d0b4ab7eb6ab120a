"""What a search has confirmed so far, in a sentence for somebody who interrupts it."""

from __future__ import annotations

from budget_search.archive import stored_config
from budget_search.layers import LayerSet, compact_indices
from budget_search.location import Found
from budget_search.planning import in_points
from budget_search.store import StudyStore


def best_so_far(found: Found) -> str:
    """One sentence for somebody who interrupted the search: what is confirmed by now."""
    if not found.folder.config.exists():
        return "Nothing was measured yet."
    facts = stored_config(found.folder)["facts"]
    total = int(facts["layers_total"])
    history = StudyStore.open(found.folder.path.name, total, folder=found.folder, storage=found.request.storage).history
    scores: dict[tuple[int, ...], dict[int, float]] = {}
    for trial in history:
        if trial.split == "certification" and trial.score is not None:
            scores.setdefault(trial.layers.kept, {})[trial.key.seed] = trial.score
    seeds = set(found.request.confirmation_seeds)
    means = {kept: sum(by[s] for s in seeds) / len(seeds) for kept, by in scores.items() if seeds <= by.keys()}
    baseline = means.pop(tuple(range(total)), None)
    # Those limits that need nothing measured; the report knows the others.
    allow = found.request.limits.counted.allow
    named = [LayerSet.parse(text, total).kept for text in found.request.layers]
    means = {kept: mean for kept, mean in means.items() if allow(LayerSet(kept, total)) and kept in (named or means)}
    how = "hold" if found.request.criterion == "observed" else "hold in the mean"
    found_so_far = []
    for delta in found.request.deltas:
        holding = [kept for kept, mean in means.items() if baseline is not None and baseline - mean <= in_points(delta)]
        if holding:
            kept = min(holding, key=lambda kept: (len(kept), -means[kept]))
            found_so_far.append(f"within {in_points(delta):g} points layers {compact_indices(kept)} of {total} {how}")
    best = f"So far {', '.join(found_so_far)}" if found_so_far else "No answer is confirmed yet"
    return f"{best}; {len(history)} evaluations are kept."
