"""A trained aggregator as a folder that can be shared.

It follows the conventions of huggingface_hub's ``PyTorchModelHubMixin``, which is not needed to write or read it:
``config.json`` holds the constructor's arguments by name and, under "mil_zoo", all else; ``model.safetensors`` the
weights by the names of the aggregator's own state dict; ``README.md`` the model card. So the folder can be uploaded as
it is, ``class Shared(ABMIL, PyTorchModelHubMixin)`` reads it with ``from_pretrained``, and :func:`load` reads what
``snapshot_download`` brings. Nothing in it is executed.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from mil_zoo import __version__
from mil_zoo.aggregators.registry import AGGREGATORS, create_aggregator
from mil_zoo.config import from_mapping
from mil_zoo.data.labelled import Standardiser
from mil_zoo.errors import InputError, as_path, did_you_mean
from mil_zoo.files import refuse_pipe, write_bytes, write_text, writing
from mil_zoo.fitted.card import model_card
from mil_zoo.fitted.model import Facts, Fitted
from mil_zoo.tasks import task_of_config
from mil_zoo.train.device import usable_device

CONFIG, WEIGHTS, CARD, STANDARDISER = "config.json", "model.safetensors", "README.md", "standardiser.safetensors"


@dataclass(frozen=True)
class Settings:
    """What ``config.json`` says under "mil_zoo".

    Attributes:
        aggregator: registry key.
        version: of mil-zoo that wrote it.
        task: registered name and settings of the task.
        graph: graph spec, or None.
        precision: of matrix products.
        standardised: whether features are scaled first, by ``standardiser.safetensors``.
        facts: data, splits, scores.
    """

    aggregator: str
    version: str
    task: dict[str, Any]
    graph: str | None = None
    precision: str = "float32"
    standardised: bool = False
    facts: Facts = dataclasses.field(default_factory=Facts)


def save(fitted: Fitted, path: Path) -> Path:
    """Writes a trained aggregator as a folder; one that a trained aggregator was written to is written again.

    Raises:
        InputError: the folder holds something else, an option cannot be written, or the disk refuses.
    """
    if path.exists() and not (path.is_dir() and ((path / CONFIG).is_file() or not any(path.iterdir()))):
        raise InputError(f"{path} exists and holds no trained aggregator; choose another folder")
    if fitted.aggregator.created_with is None or fitted.name not in AGGREGATORS:
        raise InputError(
            f"{fitted.name} was not made by create_aggregator, so nothing says how to make it again; register it, make "
            "it by its name and train that"
        )
    task = {"name": fitted.task.name, **fitted.task.settings()}
    settings = Settings(
        aggregator=fitted.name,
        version=__version__,
        task=task,
        graph=fitted.graph,
        precision=fitted.precision,
        standardised=fitted.standardiser is not None,
        facts=fitted.facts,
    )
    arguments = {"in_dim": fitted.aggregator.in_dim, "num_classes": fitted.aggregator.num_classes, **fitted.options}
    try:
        config = json.dumps(arguments | {"mil_zoo": dataclasses.asdict(settings)}, indent=1)
    except TypeError as error:
        raise InputError(f"an option of {fitted.name} cannot be written ({error}); give plain values") from None
    tensors = {
        name: value.detach().cpu().contiguous().clone() for name, value in fitted.aggregator.state_dict().items()
    }
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        write_bytes(path / WEIGHTS, save_tensors(tensors, metadata={"format": "pt"}))
        if fitted.standardiser is not None:
            write_bytes(path / STANDARDISER, save_tensors(fitted.standardiser.tensors()))
        write_text(path / CARD, model_card(fitted))
        write_text(path / CONFIG, config + "\n")
    return path


def load(path: Path | str, device: str | None = None) -> Fitted:
    """Reads a trained aggregator from the folder that ``Fitted.save`` or ``mil-zoo export`` wrote.

    Args:
        path: the folder, also one that ``huggingface_hub.snapshot_download`` brought.
        device: where to compute; None for a GPU where there is one.

    Raises:
        InputError: a file is missing or damaged, or nothing is registered under the aggregator's name.

    Example:
        >>> fitted = mil_zoo.load("my_model")
        >>> prediction = fitted.predict([mil_zoo.data.read_bag("slide.h5")])[0]
        >>> print(prediction.words, prediction.probabilities)
    """
    path = as_path(path, "path", "the folder that Fitted.save or mil-zoo export wrote")
    where = path / CONFIG
    for name in (CONFIG, WEIGHTS, STANDARDISER):
        refuse_pipe(path / name)
    try:
        config = json.loads(where.read_bytes())
        settings = from_mapping(Settings, config.pop("mil_zoo"), f'{where}, "mil_zoo"')
        in_dim, num_classes = int(config.pop("in_dim")), int(config.pop("num_classes"))
    except FileNotFoundError:
        raise InputError(f"{where}: no such file; pass the folder that Fitted.save or mil-zoo export wrote") from None
    except InputError:
        raise
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{where} is not the config.json of a trained aggregator ({error}); get it again") from None
    if settings.aggregator not in AGGREGATORS:
        near = did_you_mean(settings.aggregator, AGGREGATORS.names())
        raise InputError(
            f"{where}: no aggregator {settings.aggregator!r}{near}; import the plugin that registers it first"
        )
    task = task_of_config({"task": settings.task})
    if task.outputs != num_classes:
        raise InputError(f"{where}: num_classes is {num_classes} and its task has {task.outputs} outputs; get it again")
    device = usable_device(device)
    aggregator = create_aggregator(settings.aggregator, in_dim, task=task, **config)
    weights = path / WEIGHTS
    standardiser = None
    try:
        aggregator.load_state_dict(load_tensors(weights.read_bytes()))
        if settings.standardised:
            weights = path / STANDARDISER
            standardiser = Standardiser(**load_tensors(weights.read_bytes()))
    except (OSError, SafetensorError, RuntimeError, TypeError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(
            f"{weights} cannot be loaded ({first}); get it again, or use mil-zoo {settings.version}, which wrote it"
        ) from None
    return Fitted(
        aggregator=aggregator.to(device).eval(),
        name=settings.aggregator,
        options=config,
        graph=settings.graph,
        precision=settings.precision,
        standardiser=standardiser,
        facts=settings.facts,
        device=device,
    )
