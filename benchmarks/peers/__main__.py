"""Training steps and evaluation beside torchmil's, or beside the authors' own code, on the same bags.

``python benchmarks/peers`` takes torchmil, which the extra ``benchmark`` brings, without dropout, and ends with epochs
of ABMIL. ``python benchmarks/peers --authors DIR`` takes checkouts of the authors' repositories, DIR/CLAM and so on as
``authors.py`` names them, imports their models from there, and leaves widths, dropout and masking as they train with:
our model has the same. Before anything is timed it loads their weights and must give their logits. A checkout or a
package that is missing is a row that says so.

Both sides take AdamW and one bag a step; with ``--bags B`` ours packs B, and theirs, written for one, takes them one
after another. They take turns in one process: A B A B. A ratio is the median of those of neighbouring turns, above 1
where this package is faster. ``--processor`` counts the process's CPU time instead of the wall's: of use on a machine
where something else runs.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
import authors
import torch
import torchmil_models
from peer import Peer
from torch import Tensor, nn

from mil_zoo import Aggregator, Bag, BagBatch, create_aggregator

Turn = Callable[[], dict[str, float]]
"""What one side does in its turn; returns the seconds of its parts."""


def main() -> None:
    """Prints the table row by row, and writes it where ``--out`` says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--authors", type=Path, metavar="DIR", help="folder of checkouts of the authors' repositories")
    parser.add_argument("--models", nargs="+", choices=sorted({*torchmil_models.NAMES, *authors.AUTHORS}))
    parser.add_argument("--sizes", nargs="+", type=int, default=[100, 1000, 10_000], help="instances of a bag")
    parser.add_argument("--bags", type=int, default=1, help="bags of a step")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--processor", action="store_true", help="CPU time instead of wall time")
    parser.add_argument("--out", type=Path, help="Markdown file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.processor:
        time.perf_counter = time.process_time
    lines = _heading(arguments)
    print("\n".join(lines), flush=True)
    for title, sides in _comparisons(arguments):
        for row in _table(title, sides, arguments.rounds):
            lines.append(row)
            print(row, flush=True)
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


def _table(title: str, sides: Callable[[], Iterator[tuple[Turn, Turn]]], rounds: int) -> Iterator[str]:
    """Rows of one comparison; what fails is a row that says why, and the rest goes on."""
    try:
        for turns in sides():
            try:
                yield from _rows(title, *turns, rounds)
            except RuntimeError as error:  # short of memory; or CLAM's loss in torchmil, which fails for some weights
                yield f"| {title} | - | {str(error)[:120]} | | | |"
    except (ImportError, OSError) as error:  # nothing to compare with
        yield f"| {title} | - | {str(error)[:120]} | | | |"


def _heading(arguments: argparse.Namespace) -> list[str]:
    if arguments.authors:
        whose, theirs = "the authors'", f"the authors' code ({authors.commits(arguments.authors) or 'commits unknown'})"
    else:
        whose, theirs = "torchmil's", f"torchmil {version('torchmil')}"
    return [
        f"# Steps beside {whose}",
        "",
        f"mil-zoo and {theirs}, torch {torch.__version__}, {platform.machine()} with "
        f"{torch.backends.cpu.get_cpu_capability()}, {arguments.threads} threads, "
        f"{'CPU' if arguments.processor else 'wall'} time; medians of {arguments.rounds}.",
        "",
        f"| what | mil-zoo (ms) | {whose} (ms) | times faster | smallest | largest |",
        "|---|---|---|---|---|---|",
    ]


def _comparisons(arguments: argparse.Namespace) -> Iterator[tuple[str, Callable[[], Iterator[tuple[Turn, Turn]]]]]:
    names, find = torchmil_models.NAMES, torchmil_models.find
    if arguments.authors:
        names, find = tuple(authors.AUTHORS), partial(authors.find, arguments.authors)
    count = f"{arguments.bags} bags of " if arguments.bags > 1 else "N = "
    for name in arguments.models or names:
        for size in arguments.sizes:
            yield f"{name}, {count}{size}", partial(_sides, name, find, size, arguments.bags, bool(arguments.authors))
    if not (arguments.authors or arguments.models):
        whole = [partial(_whole, "three epochs", run) for run in torchmil_models.epochs()]
        yield "abmil, 18 + 6 slides of 1 000 to 12 000", lambda: iter([tuple(whole)])


def _sides(
    name: str, find: Callable[[str], Peer], size: int, bags: int, same_weights: bool
) -> Iterator[tuple[Turn, Turn]]:
    torch.manual_seed(0)
    peer = find(name)
    ours = create_aggregator(name, in_dim=peer.in_dim, num_classes=peer.num_classes, **peer.options)
    batch = BagBatch.from_bags([Bag(features=torch.randn(size, peer.in_dim), label=(b + 1) % 2) for b in range(bags)])
    pairs = list(zip(batch.features.split(batch.lengths), batch.labels.split(1), strict=True))
    if same_weights:
        _check_logits(ours, peer, batch)
    yield (
        _training(ours, lambda: ours.losses(batch)["loss"]),
        _training(peer.module, lambda: sum(peer.loss(x, y) for x, y in pairs) / bags),
    )
    yield (
        partial(_whole, "evaluation", partial(_evaluate, ours, lambda: ours(batch))),
        partial(_whole, "evaluation", partial(_evaluate, peer.module, lambda: [peer.logits(x) for x, _ in pairs])),
    )


def _check_logits(ours: Aggregator, peer: Peer, batch: BagBatch) -> None:
    """Loads their weights into ours; both must give the same logits."""
    weights = peer.module.state_dict()
    ours.load_published_state_dict({key.replace("feature_extractor_part2.", "embed."): weights[key] for key in weights})
    ours.eval()
    peer.module.eval()
    with torch.no_grad():  # not inference mode: what the batch keeps is used in training
        theirs = torch.cat([peer.logits(x).view(1, -1) for x in batch.features.split(batch.lengths)])
        torch.testing.assert_close(ours(batch).logits, theirs, rtol=1e-3, atol=1e-3)


def _training(module: nn.Module, loss: Callable[[], Tensor]) -> Turn:
    optimizer = torch.optim.AdamW(module.parameters(), fused=True)

    def turn() -> dict[str, float]:
        module.train()
        start = time.perf_counter()
        value = loss()
        forward = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        backward = time.perf_counter()
        optimizer.step()
        end = time.perf_counter()
        return {"training step": end - start, "its forward": forward - start, "its backward": backward - forward}

    return turn


def _evaluate(module: nn.Module, forward: Callable[[], object]) -> None:
    module.eval()
    with torch.inference_mode():
        forward()


def _whole(what: str, run: Callable[[], object]) -> dict[str, float]:
    start = time.perf_counter()
    run()
    return {what: time.perf_counter() - start}


def _rows(title: str, ours: Turn, theirs: Turn, rounds: int) -> Iterator[str]:
    turns = [(ours(), theirs()) for _ in range(rounds + 1)][1:]  # the first one compiles and allocates
    for what in turns[0][0]:
        a, b = (1e3 * statistics.median(side[what] for side in sides) for sides in zip(*turns, strict=True))
        ratios = [of_theirs[what] / of_ours[what] for of_ours, of_theirs in turns]
        middle = statistics.median(ratios)
        yield f"| {title}, {what} | {a:.3g} | {b:.3g} | {middle:.2f} | {min(ratios):.2f} | {max(ratios):.2f} |"


if __name__ == "__main__":
    main()
