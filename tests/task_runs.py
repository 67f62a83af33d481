"""Small plans of every task on one cohort, for tests that all tasks must pass."""

from mil_zoo.bench.plan import make_plan
from mil_zoo.bench.suite import Suite
from mil_zoo.bench.trial import Job
from mil_zoo.data.source import DatasetSource

_OUTCOME = {"time": "os_months", "censorship": "censorship"}
TASKS = {
    "survival": {"name": "survival", **_OUTCOME},
    "survival_cox": {"name": "survival_cox", **_OUTCOME},
    "survival_rank": {"name": "survival_rank", **_OUTCOME},
    "ordinal": {"name": "ordinal", "num_classes": 3},
    "multilabel": {"name": "multilabel", "names": ["wide", "deep"]},
    "regression": {"name": "regression", "column": "score", "unit": "points"},
}
_SMALL = {"learning_rate": 0.02, "bags_per_step": 8, "abmil.embed_dim": 8, "abmil.attention_dim": 4}


def task_plan(cohort, task, labels="labels.csv", **given):
    """A plan of two folds on the folder that ``survival_runs.make_cohort`` wrote."""
    source = DatasetSource(str(cohort / "bags.npz"), labels=cohort / labels)
    settings = {"models": ["abmil"], "folds": 2, "epochs": 1} | given
    return make_plan(Suite(datasets=["x"], task=TASKS[task], overrides=_SMALL, **settings), source)


def jobs_of(plans, folder):
    """The first trial of every plan, by task, as jobs that one executor takes together."""
    return {
        task: Job(plan.trials[0], plan.source_of(plan.trials[0]), folder / task, plan.suite)
        for task, plan in plans.items()
    }
