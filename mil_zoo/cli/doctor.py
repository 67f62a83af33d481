"""``mil-zoo doctor``."""

from __future__ import annotations

import click


@click.command()
def doctor() -> None:
    """Say which versions are installed, what hardware is seen, and which kernel backends run here, or why not."""
    import importlib.metadata
    import os
    import platform

    import torch
    from rich.console import Console
    from rich.table import Table

    from mil_zoo import __version__
    from mil_zoo.kernels.backends import backend_status, ops_of

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
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    machine.add_row("CUDA devices", ", ".join(gpus) or "none (torch sees no CUDA device)")
    console.print(machine)
    backends = Table("kernel backend", "runs here", "ops", title="Backends")
    for name, reason in backend_status().items():
        backends.add_row(name, "yes" if reason is None else f"no: {reason}", ", ".join(ops_of(name)))
    console.print(backends)
