from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import label as connected
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mil_zoo.data.bag import Bag, BagBatch
from mil_zoo.data.demo import simulate as demo
from mil_zoo.data.demo.simulate import HARD, DemoParameters, simulate_demo
from mil_zoo.data.splits.draw import kfold
from mil_zoo.errors import InputError

P = DemoParameters()
TYPES = len(P.tissue_types)
TUMOURS = slice(TYPES, TYPES + P.tumour_subtypes)
LOOKALIKES = slice(TYPES + P.tumour_subtypes, None)


def simulate_with_truth(parameters: DemoParameters = P, num_slides: int = 80) -> tuple[list[Bag], list, list]:
    """The slides, and of each the mixture [N, T + 2 S] and the artefacts [N, kinds] behind its features."""
    truth = []
    features = demo._features

    def spy(mixture, artefacts, *rest):
        truth.append((mixture.copy(), artefacts.copy()))
        return features(mixture, artefacts, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "_features", spy)
        bags = simulate_demo(num_slides, parameters=parameters)
    return bags, [mixture for mixture, _ in truth], [artefacts for _, artefacts in truth]


@pytest.fixture(scope="module")
def simulated() -> tuple[list[Bag], list, list]:
    return simulate_with_truth()


@pytest.fixture(scope="module")
def bags(simulated) -> list[Bag]:
    return simulated[0]


@pytest.fixture(scope="module")
def hard_bags() -> list[Bag]:
    return simulate_demo(parameters=HARD)


def assert_same(left: list[Bag], right: list[Bag]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        for name in ("features", "coords", "instance_labels"):
            x, y = getattr(a, name), getattr(b, name)
            assert x.dtype == y.dtype, name
            assert torch.equal(x, y), name
        for name in ("label", "slide_id", "patient_id", "patch_size", "unit"):
            x, y = getattr(a, name), getattr(b, name)
            assert type(x) is type(y), name
            assert x == y, name


# What a slide is


def test_bags_are_complete(bags):
    assert [bag.slide_id for bag in bags] == [f"demo_{i:03d}" for i in range(80)]
    for bag in bags:
        assert bag.features.shape == (len(bag), 64)
        assert bag.features.dtype == bag.coords.dtype == torch.float32
        assert bag.instance_labels.dtype == torch.int64
        assert (bag.patch_size, bag.unit) == (256.0, "px")
        assert (bag.coords % 256 == 0).all()
        assert len(bag.coords.unique(dim=0)) == len(bag)
    assert 35_000 <= sum(map(len, bags)) <= 40_000
    assert BagBatch.from_bags(bags).labels.sum() == 40


def test_no_slides_are_an_input_error():
    with pytest.raises(InputError, match="at least 1, not 0"):
        simulate_demo(0)


def test_same_seed_same_bits_and_slides_do_not_depend_on_their_number(bags):
    assert_same(simulate_demo(), bags)
    assert_same(simulate_demo(5), bags[:5])
    assert not torch.equal(simulate_demo(1, seed=1)[0].features[:50], bags[0].features[:50])


def test_every_prefix_is_balanced_and_the_order_is_shuffled(bags):
    signs = np.array([2 * bag.label - 1 for bag in bags])
    assert np.abs(signs.cumsum()).max() == 1
    firsts = signs[::2]
    assert 10 <= (firsts == 1).sum() <= 30  # a coin decides which slide of a pair comes first


def test_some_patients_have_two_slides(bags):
    slides: dict[str, list[int]] = {}
    for bag in bags:
        slides.setdefault(bag.patient_id, []).append(bag.label)
    pairs = [labels for labels in slides.values() if len(labels) == 2]
    assert (len(slides), len(pairs), max(map(len, slides.values()))) == (70, 10, 2)
    assert {len(set(labels)) for labels in pairs} == {1, 2}  # of one label and of both


# Tissue


def test_tissue_areas_follow_the_real_quartiles():
    rng = np.random.default_rng(0)
    counts = [len(demo._tissue(rng, P)[0]) for _ in range(500)]
    expected = np.array(P.tissue_area_quartiles) / P.area_scale
    np.testing.assert_allclose(np.quantile(counts, (0.25, 0.5, 0.75)), expected, rtol=0.15)
    assert (min(counts), max(counts)) == P.tissue_patches


def test_tissue_is_a_few_compact_pieces(bags):
    for bag in bags:
        cells = (bag.coords / 256).long().numpy()
        cells -= cells.min(0)
        mask = np.zeros(cells.max(0) + 1, int)
        mask[tuple(cells.T)] = 1
        pieces = np.bincount(connected(mask)[0].ravel())[1:]
        assert len(pieces) <= 8
        assert pieces.max() > 0.4 * len(bag)


def test_tissue_types_are_spatially_correlated_proportions():
    patches, proportions = demo._tissue(np.random.default_rng(3), P)
    np.testing.assert_allclose(proportions.sum(1), 1)
    place = {tuple(patch): i for i, patch in enumerate(patches.tolist())}
    pairs = np.array([(i, place[x + 1, y]) for (x, y), i in place.items() if (x + 1, y) in place])
    near = np.corrcoef(proportions[pairs[:, 0], 0], proportions[pairs[:, 1], 0])[0, 1]
    assert near > 0.5


# Lesions


@pytest.fixture(scope="module")
def lesions() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [demo._lesion_areas(10**6, rng, P) for _ in range(4000)]


def test_tumour_areas_are_the_square_roots_of_the_real_quantiles(lesions):
    areas = [sizes.sum() ** 2 for sizes in lesions]
    np.testing.assert_allclose(np.quantile(areas, P.tumour_probabilities), P.tumour_area_quantiles, rtol=0.15)


def test_hard_lesions_are_as_much_smaller_as_the_slides():
    rng = np.random.default_rng(0)
    areas = [demo._lesion_areas(10**6, rng, HARD).sum() * P.area_scale for _ in range(4000)]
    np.testing.assert_allclose(np.quantile(areas, P.tumour_probabilities), P.tumour_area_quantiles, rtol=0.15)


def test_lesion_counts_follow_the_real_quantiles_and_correlate_with_area(lesions):
    counts = [len(sizes) for sizes in lesions]
    expected = [round(count**P.count_exponent) for count in P.lesion_count_quantiles]
    assert np.quantile(counts, P.tumour_probabilities).tolist() == expected == [1, 2, 3, 4, 8]
    rho = spearmanr(counts, [sizes.sum() for sizes in lesions]).statistic
    assert rho == pytest.approx(6 / np.pi * np.arcsin(P.area_count_correlation / 2), abs=0.04)


def test_the_largest_lesion_comes_first_and_holds_most_of_the_area(lesions):
    several = [sizes for sizes in lesions if len(sizes) > 3]
    assert all((np.diff(sizes) <= 0).all() for sizes in several)
    share = np.median([sizes[0] / sizes.sum() for sizes in several])
    assert 0.5 < share < 0.75  # .6 over the real slides


def test_lesions_leave_a_fifth_of_the_tissue():
    rng = np.random.default_rng(0)
    assert max(demo._lesion_areas(100, rng, P).sum() for _ in range(200)) == pytest.approx(80)


def test_overlap_of_a_rectangle_and_of_a_disc():
    points = demo._sample_points(np.array([[0, 0], [1, 0], [2, 0]]))
    inside = (points[:, 0] > 0.5) & (points[:, 0] < 1.25)
    assert demo._overlap(np.flatnonzero(inside), 3).tolist() == [0.5, 0.25, 0.0]

    points = demo._sample_points(np.array([[0, 0], [1, 0], [0, 1], [1, 1], [2, 0]]))
    inside = np.hypot(*(points - 1).T) < 1
    # A quarter of the disc in each of four patches, column by column of sample points: 8 + 8 + 8 + 7 + 7 + 6 + 5 + 3.
    assert demo._overlap(np.flatnonzero(inside), 5).tolist() == [52 / 64] * 4 + [0.0]


def test_regions_have_their_area_are_connected_and_never_overlap():
    rng = np.random.default_rng(0)
    patches = np.stack(np.meshgrid(np.arange(12), np.arange(10)), -1).reshape(-1, 2)
    points = demo._sample_points(patches)
    free = np.ones(len(points), bool)
    covered = np.zeros(len(patches))
    for area in (20.0, 0.5, 6.25):
        before = free.copy()
        overlap = demo._grow(points, free, area, rng, P)
        assert overlap.sum() == area
        assert (before & ~free).sum() == area * 64
        if before.all():
            samples = np.zeros((96, 80), int)
            samples[tuple((points[~free] * 8).astype(int).T)] = 1
            assert connected(samples)[1] == 1
        covered += overlap
    assert covered.max() <= 1
    assert covered.sum() * 64 == (~free).sum()


def test_regions_take_what_is_left():
    points = demo._sample_points(np.array([[0, 0], [1, 0]]))
    free = np.ones(len(points), bool)
    rng = np.random.default_rng(0)
    assert demo._grow(points, free, 5.0, rng, P).tolist() == [1.0, 1.0]
    assert demo._grow(points, free, 5.0, rng, P).tolist() == [0.0, 0.0]


def test_the_smallest_lesion_still_makes_an_instance_positive():
    points = demo._sample_points(np.array([[0, 0], [1, 0], [0, 1], [1, 1]]))
    for seed in range(30):
        overlap = demo._grow(points, np.ones(len(points), bool), 0.01, np.random.default_rng(seed), P, cover=0.2)
        assert overlap.max() == 13 / 64  # the first of 64 sample points beyond 20 %, and no more


def test_instances_are_positive_above_a_fifth_of_their_area(simulated):
    seen = []
    for bag, mixture, _ in zip(*simulated, strict=True):
        tumour = mixture[:, TUMOURS].sum(1)
        assert (tumour > 0).any() == bag.instance_labels.any() == bool(bag.label)
        assert ((mixture[:, TUMOURS] > 0).any(0)).sum() == bag.label  # one sub-type a slide
        np.testing.assert_array_equal(bag.instance_labels.numpy(), tumour > 0.2)
        seen.append(tumour[(tumour > 0) & (tumour <= 0.2)])
    assert len(np.concatenate(seen)) > 50  # patches that a lesion touches and that are negative all the same


@pytest.mark.parametrize(("name", "counts"), [("bags", [5, 13, 28, 59, 139]), ("hard_bags", [1, 2, 12, 48, 273])])
def test_positive_slides_hold_as_many_positive_patches_as_the_cards_say(name, counts, request):
    found = [int(bag.instance_labels.sum()) for bag in request.getfixturevalue(name) if bag.label]
    np.testing.assert_allclose(np.quantile(found, P.tumour_probabilities), counts, rtol=0.05, atol=0.5)


def oracle(bags: list[Bag]) -> float:
    """Mean AUC over folds by patient of a slide's highest patch score, by the true labels of the others' patches."""
    of = {bag.slide_id: bag for bag in bags}
    found = []
    for split in kfold(bags, folds=5, repeats=3):
        train, test = [of[name] for name in split.train + split.val], [of[name] for name in split.test]
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced"))
        probe.fit(torch.cat([bag.features for bag in train]), torch.cat([bag.instance_labels for bag in train]))
        scores = [probe.decision_function(bag.features).max() for bag in test]
        found.append(roc_auc_score([bag.label for bag in test], scores))
    return float(np.mean(found))


def test_true_patch_labels_tell_slides_apart_as_the_cards_say(bags, hard_bags):
    assert oracle(bags) == pytest.approx(0.94, abs=0.02)
    assert oracle(hard_bags) == pytest.approx(0.83, abs=0.02)


# Features


def test_prototypes_lie_about_one_apart_and_look_alikes_in_between():
    world = demo._world(np.random.default_rng(0), P)
    tissue, tumour, lookalike = world.prototypes[:TYPES], world.prototypes[TUMOURS], world.prototypes[LOOKALIKES]
    np.testing.assert_allclose(np.linalg.norm(world.prototypes[: TUMOURS.stop], axis=1), 1)
    benign = tissue[list(P.lookalike_types)]
    whole = np.linalg.norm(tumour - benign, axis=1)
    np.testing.assert_allclose(np.linalg.norm(lookalike - benign, axis=1), 0.6 * whole)
    np.testing.assert_allclose(np.linalg.norm(lookalike - tumour, axis=1), 0.4 * whole)
    assert np.linalg.matrix_rank(world.prototypes) <= P.type_dim


def test_slides_have_a_stain_of_their_own(simulated):
    def between(bags, mixtures, artefacts):
        """Variance over slides of the mean feature of nearly pure lymphocyte patches, summed over dimensions."""
        means = []
        for bag, mixture, artefact in zip(bags, mixtures, artefacts, strict=True):
            pure = (mixture[:, 0] > 0.9) & (artefact.sum(1) == 0)
            if pure.sum() >= 20:
                means.append(bag.features[pure].mean(0).numpy())
        assert len(means) >= 15
        return np.var(means, axis=0).sum()

    unstained = simulate_with_truth(replace(P, stain_offset=0.0, stain_scaling=0.0))
    assert between(*simulated) > 5 * between(*unstained)


def test_both_classes_hold_artefacts_and_look_alikes(simulated):
    lookalikes, outliers = {0: [], 1: []}, {0: [], 1: []}
    for bag, mixture, artefact in zip(*simulated, strict=True):
        lookalikes[bag.label].append(mixture[:, LOOKALIKES].sum(1).mean())
        norm = bag.features.norm(dim=1).numpy()
        struck = artefact.sum(1) > 0.9
        outliers[bag.label].append(struck.mean())
        if struck.any():
            assert np.median(norm[struck]) > 1.5 * np.median(norm[artefact.sum(1) == 0])
    for shares in (lookalikes, outliers):
        for label in (0, 1):
            assert 0.003 < np.mean(shares[label]) < 0.1
        assert 0.5 < np.mean(shares[1]) / np.mean(shares[0]) < 2


def test_parameters_are_used():
    bag = simulate_demo(1, parameters=replace(P, dim=32, patch_size_px=512.0))[0]
    assert bag.features.shape[1] == 32
    assert bag.patch_size == 512
    assert (bag.coords % 512 == 0).all()
