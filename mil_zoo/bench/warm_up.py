"""A first step that is not measured: kernels are compiled and libraries loaded before time and memory count."""

from __future__ import annotations

import warnings
from contextlib import suppress
from dataclasses import replace

import numpy as np

from mil_zoo.data.bags import as_bags
from mil_zoo.train.protocols import PROTOCOLS, TrialContext, run_protocol
from mil_zoo.train.sampling import subsample

BAGS, INSTANCES = 4, 64  # enough for every kernel, optimiser and table of a trial to be used once


def warm_up(context: TrialContext) -> None:
    """Trains a copy of a trial's model for one epoch on a few instances of its smallest training bags.

    What goes wrong there goes wrong in the trial too, which then says it. A protocol of its own is left alone: how much
    it does is not known.
    """
    if context.name in PROTOCOLS:
        return
    with suppress(Exception, SystemExit), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bags, rng = as_bags(context.bags["train"]), np.random.default_rng(0)
        order = np.argsort(bags.sizes, kind="stable")[:BAGS].tolist()
        few = [subsample(bags[i], INSTANCES, rng) for i in order]
        run_protocol(
            replace(
                context,
                training=replace(context.training, epochs=1, select_after=0.0, labelled=1.0),
                bags=dict.fromkeys(context.bags, few),
                on_epoch=lambda row: None,
                kept={},
                place=None,
            )
        )
