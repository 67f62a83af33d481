"""``mil-zoo doctor``."""

from __future__ import annotations

from pathlib import Path

import click

NVIDIA = Path("/dev/nvidia0")


@click.command()
@click.option("--all", "developers", is_flag=True, help="Tell of the extras of developers too: tests, site, speed.")
def doctor(developers: bool) -> int:
    """Say what works on this machine, which package is missing, too old or too new, and what mends it.

    Exit code 1: mil-zoo needs one of these packages.
    """
    from mil_zoo.cli.requirements import DEVELOPERS, EXTRAS, OPTIONAL, PACKAGE, command, missing

    needed = [one for one in missing() if one.name not in OPTIONAL]
    lacks = {one.name for one in needed}
    if not lacks & {"torch", "numpy", "rich"}:  # without these there is nothing to look at the machine with
        _show_machine()
    if needed:
        click.echo("\nNeeded, and missing, too old or too new:")
        for one in needed:
            click.echo(f"  {one}")
        click.echo(f"Mend it with:\n  {command([one.requirement for one in needed])}")
    else:
        click.echo("\nNothing that mil-zoo needs is missing, too old or too new.")
    for one in missing():
        if one.name in OPTIONAL:
            click.echo(f"\nOptional: {one}; {OPTIONAL[one.name]}. Add it with:\n  {command([one.requirement])}")
    for extra, purpose in (EXTRAS | DEVELOPERS if developers else EXTRAS).items():
        if lacking := missing(extra):
            what = ", ".join(map(str, lacking))
            click.echo(f"\nOptional, for {purpose}: {what}. Add it with:\n  {command([f'{PACKAGE}[{extra}]'])}")
    return 1 if needed else 0


def _show_machine() -> None:
    """Prints the tables of versions, hardware and kernel backends."""
    import importlib.metadata
    import os
    import platform

    import torch
    from rich.console import Console
    from rich.table import Table

    from mil_zoo import __version__
    from mil_zoo.kernels.backends import backend_status, ops_of
    from mil_zoo.kernels.onednn import is_faster

    console = Console()
    versions = Table("package", "version", title="Versions")
    versions.add_row("mil-zoo", __version__)
    versions.add_row("python", platform.python_version())
    for package in ("torch", "dgl", "numba", "triton", "numpy", "pandas", "scikit-learn"):
        try:
            versions.add_row(package, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            versions.add_row(package, "not installed")
    console.print(versions)
    machine = Table("what", "found", title="Machine")
    machine.add_row("platform", platform.platform())
    machine.add_row("CPU cores", str(os.cpu_count()))
    machine.add_row("torch threads", str(torch.get_num_threads()))
    products = "oneDNN's: MKL would leave half of this CPU's vectors empty" if is_faster() else "PyTorch's own"
    machine.add_row("products in float32", products)
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    machine.add_row("CUDA devices", ", ".join(gpus) or "none (torch sees no CUDA device)")
    console.print(machine)
    backends = Table("kernel backend", "runs here", "ops", title="Backends")
    for name, reason in backend_status().items():
        backends.add_row(name, "yes" if reason is None else f"no: {reason}", ", ".join(ops_of(name)))
    console.print(backends)
    if NVIDIA.exists() and not gpus:
        click.echo(
            "\nThis machine has an NVIDIA device that torch does not see: install a CUDA build of torch that fits its "
            "driver (pytorch.org tells the command)."
        )
