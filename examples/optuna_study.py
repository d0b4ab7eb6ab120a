"""Analyses the trials of a study with Optuna and pandas: a table of trials, and the effect of each layer.

    python examples/optuna_study.py studies/sst2__bert-base-uncased__0123456789

In a browser: ``optuna-dashboard sqlite:///studies/.../study.db``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import optuna
import pandas as pd


def main(folder: str) -> pd.DataFrame:
    """One row per evaluation, with a column per layer (kept or not), score, depth, rung, seed and duration."""
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{Path(folder).resolve() / 'study.db'}")
    trials = study.trials_dataframe(attrs=("number", "values", "params", "user_attrs", "state"))
    trials.columns = trials.columns.str.removeprefix("values_").str.removeprefix("user_attrs_")
    trials.columns = trials.columns.str.removeprefix("params_")
    layers = [name for name in trials.columns if name.startswith("layer_")]
    print(trials[["depth", "score", "rung", "seed", "split", "train_seconds"]].round(2).to_string(index=False))

    screens = trials[(trials["split"] == "selection") & trials["score"].notna()]
    kept = {name: screens.loc[screens[name].astype(bool), "score"].mean() for name in layers}
    dropped = {name: screens.loc[~screens[name].astype(bool), "score"].mean() for name in layers}
    effects = pd.Series(kept) - pd.Series(dropped)
    print("\nmean score of the screens that keep a layer minus the mean score of those that drop it:")
    print(effects.round(2).to_string())
    return trials


if __name__ == "__main__":
    main(*sys.argv[1:])
