"""The authors' own models, imported from checkouts of their repositories, with their widths, dropout and losses."""

from __future__ import annotations

import contextlib
import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import combinations
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
import torch.nn.functional as F
from peer import DIM, EMBED, Peer
from torch import Tensor, nn


def _abmil(code: ModuleType) -> Peer:
    module = code.Attention()
    module.feature_extractor_part1 = nn.Identity()  # of images: the features are given
    return Peer(
        {"embed_dim": 500},
        module,
        lambda x, y: module.calculate_objective(x, y)[0].sum(),
        lambda x: module(x)[0].logit(),
        in_dim=800,
        num_classes=1,
    )


def _acmil(code: ModuleType) -> Peer:
    sizes = SimpleNamespace(D_feat=DIM, D_inner=EMBED, n_class=2, n_token=5)
    module = code.ACMIL_GA(sizes, n_token=5, n_masked_patch=10, mask_drop=0.6)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        branches, slide, attention = module(x[None])
        pairs = [F.cosine_similarity(a, b, dim=0) for a, b in combinations(attention[0].softmax(-1), 2)]
        return F.cross_entropy(branches, y.repeat(5)) + F.cross_entropy(slide, y) + torch.stack(pairs).mean()

    return Peer({}, module, loss, lambda x: module(x[None])[1])


def _clam(code: ModuleType, name: str) -> Peer:
    module = getattr(code, name)(dropout=0.25)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        logits, *_, instances = module(x, label=y, instance_eval=True)
        return 0.7 * F.cross_entropy(logits, y) + 0.3 * instances["instance_loss"]

    return Peer({}, module, loss, lambda x: module(x)[0])


def _dsmil(code: ModuleType) -> Peer:
    module = code.MILNet(code.FCLayer(DIM, 2), code.BClassifier(DIM, 2))

    def loss(x: Tensor, y: Tensor) -> Tensor:
        instances, bag, *_ = module(x)
        both = (bag, instances.max(0, keepdim=True).values)
        return sum(0.5 * F.binary_cross_entropy_with_logits(logits, F.one_hot(y, 2).float()) for logits in both)

    return Peer({}, module, loss, lambda x: module(x)[1])


def _by_entropy(module: nn.Module, logits: Callable[[Tensor], Tensor]) -> Peer:
    return Peer({}, module, lambda x, y: F.cross_entropy(logits(x), y), logits)


def _ilra(code: ModuleType) -> Peer:
    module = code.ILRA(feat_dim=DIM, ln=True)  # as their configuration
    return _by_entropy(module, lambda x: module(x[None])[0])


def _rrt(code: ModuleType) -> Peer:
    module = code.RRTMIL(input_dim=DIM, da_act="tanh")  # as all their commands
    return _by_entropy(module, lambda x: module(x[None]))


def _transmil(code: ModuleType) -> Peer:
    Tensor.cuda = lambda self: self  # where the class token goes, wherever the features are
    module = code.TransMIL(n_classes=2)
    return _by_entropy(module, lambda x: module(data=x[None])["logits"])


def _wikg(code: ModuleType) -> Peer:
    torch.autograd.set_detect_anomaly(False)  # which their file switches on
    module = code.WiKG(dim_in=DIM)
    return _by_entropy(module, lambda x: module(x[None]))


AUTHORS = {  # our name: folder of the checkout, its address at github.com, the module there, what makes the peer of it
    "abmil": ("AttentionDeepMIL", "AMLab-Amsterdam/AttentionDeepMIL", "model", _abmil),
    "acmil": ("ACMIL", "dazhangyu123/ACMIL", "architecture.transformer", _acmil),
    "clam_sb": ("CLAM", "mahmoodlab/CLAM", "models.model_clam", partial(_clam, name="CLAM_SB")),
    "clam_mb": ("CLAM", "mahmoodlab/CLAM", "models.model_clam", partial(_clam, name="CLAM_MB")),
    "dsmil": ("dsmil-wsi", "binli123/dsmil-wsi", "dsmil", _dsmil),
    "ilra": ("ILRA", "jinxixiang/low_rank_wsi", "mil.models.ilra", _ilra),
    "rrt": ("RRT-MIL", "DearCaat/RRT-MIL", "modules.rrt", _rrt),
    "transmil": ("TransMIL", "szc19990412/TransMIL", "models.TransMIL", _transmil),
    "wikg": ("WiKG", "WonderLandxD/WiKG", "model", _wikg),
}


def find(folder: Path, name: str) -> Peer:
    """The peer of our aggregator ``name`` among the checkouts in ``folder``.

    Raises:
        FileNotFoundError: the checkout is missing; the message says what to clone.
        ImportError: a package that their code needs is not installed.
    """
    checkout, address, module, make = AUTHORS[name]
    if not (folder / checkout).is_dir():
        raise FileNotFoundError(f"no {folder / checkout}: clone https://github.com/{address} there")
    with _imported(folder / checkout, module) as code, contextlib.redirect_stdout(None):
        return make(code)


@contextlib.contextmanager
def _imported(root: Path, module: str) -> Iterator[ModuleType]:
    """A module of a checkout, whose packages are forgotten afterwards: several checkouts have one of the same name.

    The module's own packages are made without running their ``__init__``, which imports what no model needs.
    """
    before = set(sys.modules)
    parents = module.split(".")[:-1]
    for depth in range(1, len(parents) + 1):
        package = ModuleType(".".join(parents[:depth]))
        package.__path__ = [str(root.joinpath(*parents[:depth]))]
        sys.modules[package.__name__] = package
    sys.path.insert(0, str(root))
    try:
        yield importlib.import_module(module)
    finally:
        sys.path.remove(str(root))
        for name in set(sys.modules) - before:
            loaded = sys.modules[name]
            places = [getattr(loaded, "__file__", None), *getattr(loaded, "__path__", [])]
            if any(place and Path(place).is_relative_to(root) for place in places):
                del sys.modules[name]


def commits(folder: Path) -> str:
    """``CLAM 77d05ff, WiKG ...`` of the checkouts that are there."""
    show = ("git", "rev-parse", "--short", "HEAD")
    found = sorted({row[0] for row in AUTHORS.values() if (folder / row[0] / ".git").exists()})
    return ", ".join(f"{name} {subprocess.check_output(show, cwd=folder / name, text=True).strip()}" for name in found)
