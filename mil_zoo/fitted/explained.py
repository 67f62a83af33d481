"""What trained aggregators together say of the instances of one slide."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mil_zoo.data.bag import Bag
from mil_zoo.diagnostics.explanations import EXPLAINERS, Floats, Question
from mil_zoo.fitted.model import Fitted, Prediction
from mil_zoo.train.predict import predict


def explain_together(members: Sequence[Fitted], prediction: Prediction, names: Sequence[str]) -> dict[str, Floats]:
    """Scores the instances of a predicted slide by every explainer: the mean over the members.

    All members explain the same output, of classes the one that they predict together.

    Args:
        members: trained aggregators of one task.
        prediction: what they predict of the slide, with its bag of N instances.
        names: of explainers, see :mod:`mil_zoo.diagnostics.explanations`.

    Returns:
        float64 ``[N]`` by explainer; those are left out that the aggregator does not offer.
    """
    shown = members[0].task.shown_output(prediction.values)
    questions = [_question(member, prediction.bag, shown) for member in members]
    found = {name: [EXPLAINERS.get(name)(question) for question in questions] for name in names}
    return {
        name: np.mean([one.values for one in scores if one is not None], axis=0)
        for name, scores in found.items()
        if None not in scores
    }


def _question(member: Fitted, bag: Bag, shown: int | None) -> Question:
    given = bag if member.standardiser is None else member.standardiser(bag)
    where = member.graph, member.device, member.precision
    ((_, output, prediction),) = predict(member.aggregator, [given], *where)
    return Question(
        bag=given,
        aggregator=member.aggregator.eval(),
        output=output,
        prediction=prediction,
        shown=shown,
        graph=member.graph,
        device=member.device,
        outputs=lambda bags: [(out, p) for _, out, p in predict(member.aggregator, bags, *where)],
    )
