"""Reads the checkpoint files of the authors' repositories."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mil_zoo.errors import InputError

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Under these names training scripts store a state dict beside an epoch, an optimiser and the like."""


def read_checkpoint(path: str | Path) -> Mapping[str, Any]:
    """Reads a checkpoint file without running any code that it may hold.

    Args:
        path: a ``.safetensors`` file, or one that ``torch.save`` wrote.

    Raises:
        InputError: the file is missing, is neither, or holds Python objects other than tensors and plain containers.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint file")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is not a safetensors file ({error}); get it again") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # UnpicklingError, RuntimeError, EOFError, ...: whatever the bytes provoke
        if "Unsupported global" in str(error):
            raise InputError(
                f"{path} holds Python objects beside its tensors and loading those would run code; where you trust "
                "it, save its state dict alone, with the authors' code at hand"
            ) from error
        raise InputError(f"{path} is not a checkpoint that torch.save wrote; get it again") from error
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__} where a state dict was expected")
    return content


def flat_state_dict(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the tensors of a checkpoint by the names that the authors' model gives them.

    - A state dict stored under "state_dict", "model_state_dict" or "model" is taken, and what is beside it is not
      (PyTorch Lightning in TransMIL and ILRA, ACMIL, WiKG).
    - State dicts of several modules are joined: ``{"attention": {"w": ...}}`` gives "attention.w" (DTFD-MIL).
    - "module", which DataParallel puts into names, and a "model." in front of every name, which is the attribute of a
      Lightning module, are removed.
    """
    for wrapper in WRAPPERS:
        if isinstance(checkpoint.get(wrapper), Mapping):
            checkpoint = checkpoint[wrapper]
            break
    flat = {re.sub(r"(^|\.)module(?=\.)", "", name).lstrip("."): value for name, value in _joined(checkpoint)}
    if flat and all(name.startswith("model.") for name in flat):
        flat = {name.removeprefix("model."): value for name, value in flat.items()}
    return flat


def renamed_parameters(
    checkpoint: Mapping[str, Any],
    mine: Mapping[str, Tensor],
    renames: Sequence[tuple[str, str]],
    unused: Sequence[str],
    name: str,
) -> dict[str, Tensor]:
    """Returns the tensors of a checkpoint by the names of an aggregator's own parameters.

    Args:
        checkpoint: of the authors' model, see :func:`flat_state_dict`.
        mine: the state dict of the aggregator.
        renames: regular expressions and replacements that turn the authors' names into its own.
        unused: regular expressions of the names that the authors carry and do not use.
        name: of the aggregator's class, for messages.

    Raises:
        InputError: a name without a place here, a place without a name, a shape that differs, or two different
            tensors for one place.
    """
    renamed: dict[str, Tensor] = {}
    for theirs, value in flat_state_dict(checkpoint).items():
        if any(re.fullmatch(pattern, theirs) for pattern in unused):
            continue
        ours = theirs
        for pattern, replacement in renames:
            ours = re.sub(pattern, replacement, ours)
        if ours not in mine:
            raise InputError(f"{name} with these options has no place for {theirs!r} of the published weights")
        value = torch.as_tensor(value)
        if value.shape != mine[ours].shape:
            raise InputError(
                f"{theirs!r} of the published weights has shape {list(value.shape)}, here {list(mine[ours].shape)}; "
                "create the aggregator with the same options"
            )
        if ours in renamed and not torch.equal(renamed[ours], value):
            raise InputError(f"the published weights hold two different tensors for {ours}, one as {theirs!r}")
        renamed[ours] = value
    missing = sorted(set(mine) - set(renamed))
    if missing:
        raise InputError(f"the published weights lack {', '.join(missing)} of {name}")
    return renamed


def _joined(mapping: Mapping[str, Any]) -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in mapping.items():
        if isinstance(value, Mapping):
            pairs += [(f"{name}.{inner}", tensor) for inner, tensor in _joined(value)]
        else:
            pairs.append((str(name), value))
    return pairs
