"""Simulated slides: a data set that needs no download, so that everything can be shown within minutes.

A slide is tissue on a patch grid, a smooth mixture of tissue types, a stain of its own and, when positive, lesions;
both classes hold artefacts and benign look-alikes. Sizes and counts follow CAMELYON16. The slides are 56 times smaller,
their lesions are not: of a slide's area of lesions, counted in patches, the square root is kept, as of their number. So
the smallest lesions keep their patches (5.5 stay about 5) and the largest still fit into a slide. Where areas are
divided by 56 as the slides are (`HARD`, the card ``demo_hard``), a third of the positive slides hold three positive
patches or fewer, and even a classifier of patches by their true labels tells slides apart with an AUC of .82 only.

The numbers in `DemoParameters` come from the facts named beside them and from judgement. No aggregator was trained
while they were chosen. Three checks of difficulty were, on folds by patient: logistic regression of the mean feature of
a slide must reach .55 to .9 AUC, logistic regression of single patches by their instance labels .85 to .99, and the
highest score of it in a slide .9 to .98. About 13 settings were tried for the first two; for the third the rule above
was the first and the only one. Scores on these slides show that code works, not how good an aggregator is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.special import ndtri, softmax

from mil_zoo.data.bag import Bag
from mil_zoo.errors import InputError

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Bools: TypeAlias = NDArray[np.bool_]

_SIDE = 8  # a patch is rastered with 8 x 8 sample points
_SAMPLES = _SIDE * _SIDE
# Random streams: each slide, pair and patient has its own, so that none depends on how many slides there are.
_WORLD, _SLIDE, _PAIR, _PATIENT, _PATIENT_BLOCK = range(5)


@dataclass(frozen=True)
class DemoParameters:
    """Every number of the simulation. Areas are in patches of the real slides (256 level-0 px), not yet scaled."""

    # CAMELYON16 facts: tissue of normal slides; area, lesions per slide and their correlation in tumour_001..110.
    patch_size_px: float = 256.0  # the grid step of those facts
    tissue_area_quartiles: tuple[float, float, float] = (11_000, 21_000, 34_000)
    tumour_probabilities: tuple[float, ...] = (0.05, 0.25, 0.5, 0.75, 0.95)
    tumour_area_quantiles: tuple[float, ...] = (5.5, 36, 413, 1634, 14_100)
    lesion_count_quantiles: tuple[float, ...] = (1, 3, 8, 19, 72)
    area_count_correlation: float = 0.58  # of the normal scores of area and count (Spearman .60)
    lesion_log_sd: float = 2.0  # median over slides of the standard deviation of log lesion area within a slide
    lesion_aspect: float = (
        2.7  # length / width: the largest lesion is 1.64 = sqrt(2.7) times as long as a disc of its area
    )
    positive_overlap: float = 0.2  # an instance is positive above this share of its area

    # The scale of the demo: judgement, for speed.
    area_scale: float = 56.0  # a median slide of 375 patches
    tissue_patches: tuple[int, int] = (60, 1500)  # 3 400 and 84 000 real patches: about the 6 % and 98 % quantiles
    tumour_exponent: float = 0.5  # of the area of a slide's lesions in patches: 2.3 to 119 at the quantiles
    tumour_scale: float = 1.0  # that this power is divided by
    count_exponent: float = 0.5  # of the number of lesions: kept as it is, nearly all would be smaller than a patch
    tumour_share_max: float = 0.8  # of the tissue

    # Tissue: judgement. Name, prevalence (logit), correlation length (patches; 1 mm of a real slide is 2 patches here).
    tissue_types: tuple[tuple[str, float, float], ...] = (
        ("lymphocytes", 1.0, 1.5),
        ("stroma", 0.0, 1.0),
        ("fat", 0.0, 2.0),
        ("follicle", -0.5, 0.75),
        ("sinus", 0.0, 1.0),
        ("vessel", -1.0, 0.5),
    )
    type_logit_sd: float = 2.5  # between patches: most patches are of one or two types
    type_slide_sd: float = 0.5  # between slides: some nodes are fatty, some full of follicles
    tissue_fill: float = 0.3  # share of the grid that is tissue
    tissue_smoothness: float = 0.1  # correlation length of its outline, in grid sides
    tissue_margin: float = 5.0  # how strongly the edge of the grid is avoided, in standard deviations of the outline
    outline_noise: tuple[float, ...] = (0.25, 0.2, 0.15, 0.1)  # standard deviation of log radius, harmonics 2 to 5

    # Features: judgement. Prototypes have length 1, so two tissue types lie about 1.4 apart.
    dim: int = 64
    type_dim: int = 16  # dimension of the subspace that holds the prototypes
    tumour_subtypes: int = 3
    subtype_spread: float = 0.8  # length of what is a sub-type's own, against 1 shared by all tumours
    noise_rank: int = 8
    correlated_noise: float = 0.5  # length, within a type
    white_noise: float = 0.1  # per dimension: a length of .8
    stain_rank: int = 4
    stain_offset: float = 1.0  # length of a slide's offset: comparable to the difference of two types
    stain_scaling: float = 0.1  # standard deviation of a slide's factors of the dimensions
    leak: float = 0.3  # slope of the rectifier below zero; features of encoders are skewed

    # Hard negatives, alike in both classes: judgement. Regions a slide (Poisson), median and log-sd of tissue share.
    lookalikes: tuple[float, float, float] = (2.0, 0.01, 0.7)
    lookalike_likeness: float = 0.6  # how far from a normal type to a tumour sub-type
    lookalike_types: tuple[int, ...] = (3, 4, 0)  # germinal centres, histiocytes, lymphocytes: one for each sub-type
    artefacts: tuple[float, float, float] = (0.8, 0.01, 0.7)
    artefact_kinds: int = 3  # folds, ink, blur
    artefact_length: float = 5.0  # several times that of a patch's feature

    slides_per_block: int = 8  # two of every eight slides are of one patient: 70 patients in 80 slides


HARD = DemoParameters(tumour_exponent=1.0, tumour_scale=DemoParameters.area_scale)
"""Lesions as much smaller than the real ones as the slides are."""


@dataclass(frozen=True)
class _World:
    """What all slides share: ``T`` tissue types, ``S`` tumour sub-types, as many look-alikes, in ``D`` dimensions."""

    prototypes: Floats  # [T + 2 S, D]: tissue types, tumours, look-alikes
    loadings: Floats  # [(T + 2 S) R, D] of the noise within each
    artefacts: Floats  # [kinds, D]
    stain: Floats  # [2, rank, D]: offset, scaling
    mixing: Floats  # [D, D], orthogonal


def simulate_demo(num_slides: int = 80, seed: int = 0, parameters: DemoParameters = DemoParameters()) -> list[Bag]:
    """Simulates slides ``demo_000``, ``demo_001``, ...; slide i is the same whatever ``num_slides``.

    Every two slides from the start hold one positive and one negative, in random order. The same arguments give the
    same bits on one machine; another processor or numpy may round differently.

    Args:
        num_slides: how many, at least 1.
        seed: of everything, the prototypes of the tissue types too.
        parameters: the numbers of the simulation.

    Returns:
        Bags with features float32 ``[N, 64]``, coords float32 ``[N, 2]`` (top-left corners in level-0 px, multiples of
        256), label 0 or 1, instance_labels int64 ``[N]`` (zeros in negatives) and patient_id (some have two slides).

    Raises:
        InputError: num_slides below 1.
    """
    if num_slides < 1:
        raise InputError(f"num_slides must be at least 1, not {num_slides}")
    world = _world(_rng(seed, _WORLD), parameters)
    return [_slide(i, seed, world, parameters) for i in range(num_slides)]


def _rng(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _unit(vectors: Floats) -> Floats:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))


def _world(rng: np.random.Generator, p: DemoParameters) -> _World:
    basis = np.linalg.qr(rng.normal(size=(p.dim, p.type_dim)))[0].T  # [type_dim, D]
    tissue = _unit(rng.normal(size=(len(p.tissue_types), p.type_dim)))
    shared, own = _unit(rng.normal(size=p.type_dim)), _unit(rng.normal(size=(p.tumour_subtypes, p.type_dim)))
    tumour = _unit(shared + p.subtype_spread * own)
    benign = tissue[list(p.lookalike_types)]
    prototypes = np.concatenate([tissue, tumour, benign + p.lookalike_likeness * (tumour - benign)])
    loadings = _unit(rng.normal(size=(len(prototypes) * p.noise_rank, p.dim))) / np.sqrt(p.noise_rank)
    return _World(
        prototypes=prototypes @ basis,
        loadings=p.correlated_noise * loadings,
        artefacts=p.artefact_length * _unit(rng.normal(size=(p.artefact_kinds, p.dim))),
        stain=rng.normal(size=(2, p.stain_rank, p.dim)) / np.sqrt(p.stain_rank),
        mixing=np.linalg.qr(rng.normal(size=(p.dim, p.dim)))[0],
    )


def _slide(index: int, seed: int, world: _World, p: DemoParameters) -> Bag:
    rng = _rng(seed, _SLIDE, index)
    patient = _patient(index, seed, p)
    label = (index + int(_rng(seed, _PAIR, index // 2).integers(2))) % 2
    subtype = int(_rng(seed, _PATIENT, patient).integers(p.tumour_subtypes))  # both slides of a patient show one tumour

    patches, proportions = _tissue(rng, p)  # [N, 2], [N, T]
    points = _sample_points(patches)
    free = np.ones(len(points), bool)  # tumour, look-alikes and artefacts never cover each other
    tumour = np.zeros(len(patches))
    for k, area in enumerate(_lesion_areas(len(patches), rng, p) if label else ()):
        # The largest lesion, which comes first, goes on growing until an instance is positive.
        tumour += _grow(points, free, area, rng, p, cover=0.0 if k else p.positive_overlap)

    mixture = np.zeros((len(patches), len(world.prototypes)))  # [N, T + 2 S]
    mixture[:, len(p.tissue_types) + subtype] = tumour
    for area in _benign_areas(p.lookalikes, len(patches), rng):
        mixture[:, -1 - int(rng.integers(p.tumour_subtypes))] += _grow(points, free, area, rng, p)
    mixture[:, : len(p.tissue_types)] = proportions * (1 - mixture.sum(1, keepdims=True))
    artefacts = np.zeros((len(patches), p.artefact_kinds))
    for area in _benign_areas(p.artefacts, len(patches), rng):
        artefacts[:, int(rng.integers(p.artefact_kinds))] += _grow(points, free, area, rng, p)

    corner = rng.integers(10, 200, size=2)  # where on the slide the tissue begins
    return Bag(
        features=torch.from_numpy(_features(mixture, artefacts, world, rng, p)),
        coords=torch.from_numpy(((patches + corner) * p.patch_size_px).astype(np.float32)),
        patch_size=p.patch_size_px,
        label=label,
        instance_labels=torch.from_numpy((tumour > p.positive_overlap).astype(np.int64)),
        slide_id=f"demo_{index:03d}",
        patient_id=f"P{patient:02d}",
    )


def _patient(index: int, seed: int, p: DemoParameters) -> int:
    """In every block of slides, one chosen slide is of the same patient as an earlier chosen one."""
    block, slide = divmod(index, p.slides_per_block)
    first, second = sorted(_rng(seed, _PATIENT_BLOCK, block).choice(p.slides_per_block, 2, replace=False))
    if slide >= second:
        slide = first if slide == second else slide - 1
    return block * (p.slides_per_block - 1) + int(slide)


def _tissue(rng: np.random.Generator, p: DemoParameters) -> tuple[Ints, Floats]:
    """The patches of a slide, int ``[N, 2]`` (x, y) on the grid, and their proportions of tissue types ``[N, T]``."""
    low, median, high = p.tissue_area_quartiles
    log_sd = np.log(high / low) / (2 * ndtri(0.75))
    count = int(np.clip(median / p.area_scale * np.exp(log_sd * rng.normal()), *p.tissue_patches))
    side = int(np.ceil(np.sqrt(count / p.tissue_fill)))
    axis = np.linspace(-1, 1, side)
    outline = _smooth(rng, side, p.tissue_smoothness * side) - p.tissue_margin * (axis**4 + axis[:, None] ** 4)
    rows, columns = np.unravel_index(np.sort(np.argsort(outline, axis=None)[-count:]), outline.shape)
    logits = np.stack(
        [
            prevalence + p.type_slide_sd * rng.normal() + p.type_logit_sd * _smooth(rng, side, extent)[rows, columns]
            for _, prevalence, extent in p.tissue_types
        ],
        axis=1,
    )
    return np.stack([columns, rows], axis=1), softmax(logits, axis=1)


def _smooth(rng: np.random.Generator, side: int, extent: float) -> Floats:
    field = gaussian_filter(rng.normal(size=(side, side)), extent)
    return np.asarray((field - field.mean()) / field.std())


def _lesion_areas(num_patches: int, rng: np.random.Generator, p: DemoParameters) -> Floats:
    """Areas of a slide's lesions in patches, descending: a Gaussian copula over the quantiles of area and count."""
    a, b = rng.normal(size=2)
    rho = p.area_count_correlation
    total = _from_quantiles(a, p.tumour_area_quantiles, p) ** p.tumour_exponent / p.tumour_scale
    count = _from_quantiles(rho * a + np.sqrt(1 - rho**2) * b, p.lesion_count_quantiles, p) ** p.count_exponent
    weights = np.exp(p.lesion_log_sd * rng.normal(size=max(1, round(count))))
    return np.sort(weights / weights.sum())[::-1] * min(total, p.tumour_share_max * num_patches)


def _from_quantiles(score: float, quantiles: tuple[float, ...], p: DemoParameters) -> float:
    """The value at a normal score: log-linear between the quantiles, and constant beyond them."""
    return float(np.exp(np.interp(score, ndtri(p.tumour_probabilities), np.log(quantiles))))


def _benign_areas(regions: tuple[float, float, float], num_patches: int, rng: np.random.Generator) -> Floats:
    mean_count, median_share, log_sd = regions
    return num_patches * median_share * np.exp(log_sd * rng.normal(size=rng.poisson(mean_count)))


def _sample_points(patches: Ints) -> Floats:
    """``[N * 64, 2]``: centres of an 8 x 8 raster of every patch, in patches."""
    x, y = np.meshgrid(*[(np.arange(_SIDE) + 0.5) / _SIDE] * 2)
    raster = np.stack([x.ravel(), y.ravel()], axis=1)
    return (patches[:, None] + raster).reshape(-1, 2)


def _overlap(samples: Ints, num_patches: int) -> Floats:
    """``[N]``: the share of each patch that the given sample points cover."""
    return np.bincount(samples // _SAMPLES, minlength=num_patches) / _SAMPLES


def _grow(
    points: Floats, free: Bools, area: float, rng: np.random.Generator, p: DemoParameters, cover: float = 0.0
) -> Floats:
    """Grows an irregular region until it has its area in patches and covers more than ``cover`` of some patch.

    The region is the free points nearest to a random one, in the metric of an ellipse with a noisy radius. So it
    follows the tissue where it meets its edge, and loses no area there. It takes its points from ``free``
    (``[N * 64]``, changed in place). Returns ``[N]``: the share of each patch that is covered.
    """
    candidates = np.flatnonzero(free)
    num_patches = len(points) // _SAMPLES
    if not len(candidates):
        return np.zeros(num_patches)
    aspect = p.lesion_aspect ** rng.uniform(0, 2)
    turn = np.exp(1j * rng.uniform(0, 2 * np.pi))
    noise = rng.normal(size=(len(p.outline_noise), 2)) @ (1, 1j) * p.outline_noise
    x, y = (points[candidates] - points[rng.choice(candidates)]).T
    away = (x + 1j * y) * turn
    away = away.real / np.sqrt(aspect) + 1j * away.imag * np.sqrt(aspect)
    distance = np.abs(away)
    direction = away / np.maximum(distance, 1e-9)
    # The real part of a polynomial on the unit circle: a smooth periodic function of the angle, here of log radius.
    wave = np.polyval([*noise[::-1], 0, 0], direction).real
    nearest = candidates[np.argsort(distance * np.exp(-wave), kind="stable")]
    size = max(1, round(area * _SAMPLES))
    while size < len(nearest) and _overlap(nearest[:size], num_patches).max() <= cover:
        size += 1
    free[nearest[:size]] = False
    return _overlap(nearest[:size], num_patches)


def _features(
    mixture: Floats, artefacts: Floats, world: _World, rng: np.random.Generator, p: DemoParameters
) -> NDArray[np.float32]:
    noise = rng.normal(size=(len(mixture), 1, p.noise_rank)) * mixture[:, :, None]  # [N, T + 2 S, R]
    features = mixture @ world.prototypes + noise.reshape(len(mixture), -1) @ world.loadings
    features += artefacts @ world.artefacts + p.white_noise * rng.normal(size=features.shape)
    offset, scaling = (rng.normal(size=p.stain_rank) @ directions for directions in world.stain)  # of unit variance
    features = features * (1 + p.stain_scaling * scaling) + p.stain_offset / np.sqrt(p.dim) * offset
    features = features @ world.mixing
    return np.asarray(np.maximum(features, p.leak * features), np.float32)
