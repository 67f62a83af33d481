"""Small prediction files of simulated patients and slides, for tests of scoring them again."""

import numpy as np
import pandas as pd


def risks(models=("a", "b"), folds=2, n=20, seed=0):
    """Risks of simulated patients: a row a model, fold and patient."""
    rng = np.random.default_rng(seed)
    rows = []
    for fold in range(folds):
        time, event = rng.exponential(30, n).round(2) + 1, rng.random(n) < 0.6
        for model in models:
            risk = -time + rng.normal(0, 20, n)
            for i in range(n):
                rows.append((model, fold, f"P{fold}-{i:02d}", time[i], int(event[i]), risk[i]))
    return pd.DataFrame(rows, columns=["model", "fold", "patient_id", "time_months", "event", "risk"])


def probabilities(models=("a", "b"), folds=2, n=20, seed=0):
    """Probabilities of simulated slides, one a patient."""
    rng = np.random.default_rng(seed)
    rows = []
    for fold in range(folds):
        for model in models:
            for i in range(n):
                p = float(np.clip(0.5 + 0.25 * (2 * (i % 2) - 1) + rng.normal(0, 0.2), 0.01, 0.99).round(3))
                rows.append((model, fold, f"s{fold}-{i:02d}", f"P{fold}-{i:02d}", i % 2, p))
    return pd.DataFrame(rows, columns=["model", "fold", "slide_id", "patient_id", "label", "score"])
