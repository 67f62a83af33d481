"""Losses and their gradients, against values that were computed apart and in float64."""

import numpy as np
import pytest
import torch
from helpers import GOLDEN, compared
from hypothesis import given, settings
from hypothesis import strategies as st

from mil_zoo.tasks.losses import multilabel, ordinal, regression, survival

FILE = np.load(GOLDEN / "survival" / "losses.npz", allow_pickle=False)
EXACT = {"rel": 1e-9, "abs": 1e-9}


def golden(case: str) -> dict[str, np.ndarray]:
    known = {key.removeprefix(f"{case}/"): FILE[key] for key in FILE.files if key.startswith(f"{case}/")}
    assert known, case
    return known


def cases(prefix: str) -> list[str]:
    return sorted({key.rsplit("/", 1)[0] for key in FILE.files if key.startswith(prefix) and key.endswith("/loss")})


def check(case: str, loss, *columns: str, **more) -> None:
    """The mean of ``loss(x, *columns)`` and its gradient are those of ``case``; each bag has a value of its own."""
    known = golden(case)
    x = torch.tensor(known["x"], requires_grad=True)
    values = loss(x, *(torch.tensor(known[name]) for name in columns), **more)
    assert values.shape == (len(x),)
    assert values.dtype == torch.float64
    values.mean().backward()
    assert values.mean().item() == pytest.approx(float(known["loss"]), **EXACT)
    assert x.grad.numpy() == pytest.approx(known["grad"], **EXACT)
    compared("survival/losses", case, values.mean().item(), known["loss"])
    compared("survival/losses", f"{case}, gradient", x.grad.numpy(), known["grad"])
    single = loss(x.detach().float(), *(torch.tensor(known[name]) for name in columns), **more)
    assert single.dtype == torch.float32
    assert single.isfinite().all()


@pytest.mark.parametrize("case", cases("nll"))
def test_discrete_hazards(case):
    alpha = float(golden(case)["alpha"])
    check(case, survival.discrete_nll, "bin", "event", alpha=alpha)


@pytest.mark.parametrize("case", ["nll", "nll_one_bag", "nll_all_censored", "nll_extreme"])
def test_hazards_and_risk(case):
    known, logits = golden(case), torch.tensor(golden(f"{case}/alpha0")["x"])
    assert survival.discrete_hazards(logits).numpy() == pytest.approx(known["hazard"], **EXACT)
    assert survival.discrete_risk(logits).numpy() == pytest.approx(known["risk"], **EXACT)


@pytest.mark.parametrize("case", [case for case in cases("cox_") if "memory" not in case])
def test_cox(case):
    check(case, survival.cox, "time", "event", ties=case.split("/")[1])


def test_cox_with_a_memory():
    known = golden("cox_memory/all_events")
    x = torch.tensor(known["x"], requires_grad=True)
    own = len(x)
    time, event = (torch.tensor(known[name]) for name in ("time", "event"))
    placed = place_of_the_batch(known)
    past = torch.tensor(known["remembered"]), time[placed[1]], event[placed[1]]
    loss = survival.cox(x, time[placed[0]], event[placed[0]], "breslow", remembered=past).mean()
    loss.backward()
    assert loss.item() == pytest.approx(float(known["loss"]), **EXACT)
    assert x.grad.numpy() == pytest.approx(known["grad"], **EXACT)
    assert own == 2


def place_of_the_batch(known):
    """Rows of the current bags and of the remembered ones: these come first in the file."""
    past = len(known["remembered"])
    return slice(past, None), slice(0, past)


@pytest.mark.parametrize("case", ["rank_logistic_no_ties", "rank_logistic_ties"])
def test_ranking(case):
    check(case, survival.ranking, "time", "event")


@pytest.mark.parametrize("case", ["corn", "corn_high_classes_absent"])
def test_corn(case):
    check(case, ordinal.corn, "label")


def test_corn_probabilities():
    known = golden("corn")
    got = ordinal.corn_probabilities(torch.tensor(known["x"])).numpy()
    assert got == pytest.approx(known["probability"], **EXACT)
    above = 1 - got.cumsum(1)[:, :-1]
    assert ((above > 0.5).sum(1) == known["prediction"]).all()


def test_coral():
    check("coral", ordinal.coral, "label")
    rises = torch.tensor([[0.0, 2.0, -1.0]])
    got = ordinal.coral_probabilities(rises)
    assert got.sum().item() == pytest.approx(1)
    assert (got >= 0).all()


def test_labels_that_may_be_unknown():
    check("multilabel_missing", multilabel.masked_binary_cross_entropy, "label")


@pytest.mark.parametrize(("case", "kind"), [("mse", "mse"), ("huber1", "huber"), ("mae", "mae")])
def test_regression(case, kind):
    check(f"regression_{case}", regression.regression, "target", kind=kind)


# What holds for any data ----------------------------------------------------------------------------------------------

batches = st.integers(1, 12).flatmap(
    lambda n: st.tuples(
        st.lists(st.floats(-20, 20), min_size=n, max_size=n),
        st.lists(st.integers(0, 6), min_size=n, max_size=n),
        st.lists(st.integers(0, 1), min_size=n, max_size=n),
        st.permutations(range(n)),
    )
)


def tensors(batch):
    risk, time, event, order = batch
    return torch.tensor(risk, dtype=torch.float64), torch.tensor(time), torch.tensor(event), torch.tensor(order)


@pytest.mark.parametrize("ties", ["efron", "breslow"])
@settings(max_examples=60, deadline=None)
@given(batch=batches)
def test_cox_is_what_the_formula_says_whatever_the_order_of_rows(ties, batch):
    risk, time, event, order = tensors(batch)
    total = 0.0
    for t in set(time[event == 1].tolist()):
        tied = risk[(time == t) & (event == 1)]
        among, m = risk[time >= t].exp().sum(), len(tied)
        taken = [tied.exp().sum() * (turn / m if ties == "efron" else 0) for turn in range(m)]
        total += sum((among - one).log() for one in taken) - tied.sum()
    expected = float(total) / max(1, int(event.sum()))
    values = survival.cox(risk, time, event, ties)
    assert values.mean().item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    moved = survival.cox(risk[order], time[order], event[order], ties)
    assert moved.numpy() == pytest.approx(values[order].numpy(), rel=1e-9, abs=1e-9)
    assert (values[event == 0] == 0).all()


@settings(max_examples=60, deadline=None)
@given(batch=batches)
def test_ranking_is_the_mean_over_pairs(batch):
    risk, time, event, order = tensors(batch)
    pairs = [(a, b) for a in range(len(risk)) for b in range(len(risk)) if event[a] and time[a] < time[b]]
    each = [torch.nn.functional.softplus(risk[b] - risk[a]).item() for a, b in pairs]
    values = survival.ranking(risk, time, event)
    assert values.mean().item() == pytest.approx(np.mean(each) if pairs else 0, rel=1e-9, abs=1e-9)
    moved = survival.ranking(risk[order], time[order], event[order])
    assert moved.numpy() == pytest.approx(values[order].numpy(), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("loss", [survival.cox, survival.ranking])
def test_a_batch_without_an_event_teaches_nothing(loss):
    risk = torch.tensor([1.0, -2.0, 300.0], requires_grad=True)
    values = loss(risk, torch.tensor([1, 2, 3]), torch.zeros(3))
    values.mean().backward()
    assert (values == 0).all()
    assert (risk.grad == 0).all()


@pytest.mark.parametrize("ties", ["efron", "breslow"])
def test_weights_of_a_half_are_half_a_patient(ties):
    """Two rows of one patient, each of half the weight, count in the risk sets of others as one row."""
    risk, time = torch.tensor([0.3, -1.0, 0.7, 0.2]), torch.tensor([1.0, 2.0, 3.0, 4.0])
    event = torch.tensor([1, 0, 1, 0])
    once = survival.cox(risk, time, event, ties).sum()
    twice = [torch.cat([part, part[3:]]) for part in (risk, time, event)]
    halves = survival.cox(*twice, ties, weights=torch.tensor([1.0, 1, 1, 0.5, 0.5])).sum()
    assert halves.item() == pytest.approx(once.item() * 5 / 4)
    none = survival.cox(*twice, ties, weights=torch.tensor([1.0, 1, 1, 0, 1])).sum()
    assert none.item() == pytest.approx(once.item() * 5 / 4)
    pair = survival.ranking(*twice, weights=torch.tensor([1.0, 1, 1, 0.5, 0.5])).mean()
    assert pair.item() == pytest.approx(survival.ranking(risk, time, event).mean().item())


def test_an_unknown_label_has_no_gradient_whatever_stands_there():
    logits = torch.tensor([[0.5, torch.nan], [1.0, -1.0]], requires_grad=True)
    labels = torch.tensor([[1.0, torch.nan], [0.0, torch.nan]])
    values = multilabel.masked_binary_cross_entropy(logits, labels)
    values.mean().backward()
    assert values.isfinite().all()
    assert logits.grad.isfinite().all()
    assert (logits.grad[:, 1] == 0).all()
    none = multilabel.masked_binary_cross_entropy(logits[:, 1:], labels[:, 1:])
    assert (none == 0).all()


def test_weights_multiply():
    x, w = torch.tensor([[0.3, -1.0], [2.0, 0.5]]), torch.tensor([1.0, 3.0])
    labels, bins, event = torch.tensor([2, 0]), torch.tensor([1, 0]), torch.tensor([1, 0])
    for loss, arguments in ((ordinal.coral, (labels,)), (survival.discrete_nll, (bins, event))):
        plain = loss(x, *arguments)
        assert loss(x, *arguments, weights=w).tolist() == pytest.approx((plain * w).tolist())
    for loss, arguments in ((ordinal.corn, (labels,)), (multilabel.masked_binary_cross_entropy, (x > 0,))):
        thrice = [part[[0, 1, 1, 1]] for part in (x, *arguments)]
        assert loss(x, *arguments, weights=w).mean().item() == pytest.approx(loss(*thrice).mean().item())


def test_half_precision_is_computed_in_float32():
    z, time, event = torch.tensor([0.5, -0.25]).bfloat16(), torch.tensor([1, 2]), torch.tensor([1, 0])
    for values in (
        survival.cox(z, time, event),
        survival.ranking(z, time, event),
        survival.discrete_nll(z[:, None], torch.tensor([0, 0]), event),
        ordinal.corn(z[:, None], event),
        ordinal.coral(z[:, None], event),
        multilabel.masked_binary_cross_entropy(z[:, None], event[:, None].float()),
        regression.regression(z, time),
    ):
        assert values.dtype == torch.float32
