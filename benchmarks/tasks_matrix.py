"""Writes which aggregators train on which tasks: ``python benchmarks/tasks_matrix.py > benchmarks/results/tasks.md``.

Each pair makes one training step on five random bags, and "yes" stands where loss and every gradient are finite; else
the sentence that refuses. ``tests/contract/test_every_task.py`` asserts the same.
"""

from __future__ import annotations

import numpy as np
import torch

import mil_zoo
from mil_zoo.tasks import Classification, MultiLabel, Ordinal, Regression, Survival, Task

OUTCOMES = np.array([[5.0, 1], [9.0, 0], [2.0, 1], [30.0, 0], [12.0, 1]])
GRADES = np.array([[0.0], [2], [1], [1], [0]])
TASKS: dict[str, tuple[Task, np.ndarray]] = {
    "classification": (Classification(3), GRADES),
    "multilabel": (MultiLabel(("a", "b")), np.array([[0, 1], [1, np.nan], [np.nan, 0], [1, 1], [0, 0]])),
    "ordinal": (Ordinal(3), GRADES),
    "regression": (Regression(), OUTCOMES[:, :1]),
    "survival": (Survival(bins=2), OUTCOMES),
    "survival_cox": (Survival("cox"), OUTCOMES),
    "survival_rank": (Survival("rank"), OUTCOMES),
}
SMALLER = {"camil": {"landmarks": 16}, "dgrmil": {"embed_dim": 64}, "transmil": {"embed_dim": 64}}


def answer(name: str, task: Task, targets: np.ndarray) -> str:
    """ "yes", or why not."""
    generator = torch.Generator().manual_seed(0)
    try:
        aggregator = mil_zoo.create_aggregator(name, 8, task=task.fit(targets), **SMALLER.get(name, {}))
    except mil_zoo.InputError as error:
        return str(error)
    bags = []
    for number, target in enumerate(targets):
        n = 9 + 4 * number
        coords = 256.0 * torch.stack([torch.arange(n) % 4, torch.arange(n) // 4], 1)
        given = {"label": int(target[0])} if task.name == "classification" else {"target": tuple(target.tolist())}
        features = torch.randn(n, 8, generator=generator)
        bags.append(mil_zoo.Bag(features=features, coords=coords, patch_size=256, slide_id=f"s{number}", **given))
    loss = aggregator.train().losses(mil_zoo.BagBatch.from_bags(bags, graph=type(aggregator).graph))["loss"]
    loss.backward()
    gradients = [parameter.grad for parameter in aggregator.parameters() if parameter.grad is not None]
    finite = bool(loss.isfinite()) and all(bool(one.isfinite().all()) for one in gradients)
    return "yes" if finite else "no: the loss or a gradient is not finite"


def main() -> None:
    """Prints the page."""
    print("# Aggregators and tasks\n\nOne training step of each pair; yes: loss and gradients are finite.")
    print("`python benchmarks/tasks_matrix.py` makes this page.\n")
    print(f"| aggregator | {' | '.join(TASKS)} |\n|---|{'---|' * len(TASKS)}")
    for name in mil_zoo.list_aggregators():
        print(f"| `{name}` | {' | '.join(answer(name, *pair) for pair in TASKS.values())} |", flush=True)


if __name__ == "__main__":
    main()
