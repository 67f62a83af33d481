"""``mil-zoo export``."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import click

from mil_zoo.cli.options import plugin_option
from mil_zoo.errors import InputError
from mil_zoo.files import refuse_pipe


@click.command(
    epilog="""\b
Examples:
  mil-zoo export runs/c16 --model abmil --out abmil_c16
  mil-zoo export runs/c16 --model abmil --trial abmil-r0-f2-s0 --out abmil_c16 --onnx
"""
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--model", required=True, help="Which of its models: aggregator or aggregator@grid.")
@click.option("--trial", help="Which trial.  [default: the one of the best validation score]")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option("--onnx", is_flag=True, help="Write OUT/model.onnx too; needs mil-zoo[onnx].")
@plugin_option
def export(run: Path, model: str, trial: str | None, out: Path, onnx: bool, plugin: tuple[Path, ...]) -> None:
    """Write a trained model of RUN as one folder: config.json, model.safetensors, and a model card.

    mil_zoo.load(OUT) reads it, and a model hub takes it as it is. An OUT that holds something else is left as it is.
    """
    from rich.console import Console

    console = Console()
    with console.status("Loading torch and the weights"):
        from mil_zoo.bench.predictor import Predictor

        predictor = Predictor(run, model, trial, device="cpu")
    task = predictor.task
    sign = 1 if task.higher_is_better(task.select) else -1

    def rank(number: int) -> float:
        score = predictor.members[number].facts.val_scores.get(task.select)
        return -math.inf if score is None else sign * score

    best = max(range(len(predictor.members)), key=rank)
    chosen = predictor.members[best]
    _refuse_others(out, chosen.facts)
    chosen.save(out)
    written = ["config.json", "model.safetensors", "README.md"]
    if onnx:
        written.append(chosen.to_onnx(out / "model.onnx").name)
    for line in (f"{predictor.trials[best]} of {run}: {out} ({', '.join(written)})", f'Read it: mil_zoo.load("{out}")'):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _refuse_others(out: Path, facts: Any) -> None:
    """Raises an ``InputError`` where ``out`` holds anything but what the same model was exported to."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    refuse_pipe(out / "config.json")
    try:
        there = json.loads((out / "config.json").read_bytes())["mil_zoo"]["facts"]
    except (OSError, ValueError, LookupError, TypeError):
        raise InputError(f"{out} exists and holds no trained aggregator; choose another --out") from None
    if there != json.loads(json.dumps(dataclasses.asdict(facts))):
        raise InputError(f"{out} holds another trained aggregator; choose another --out, or delete it")
