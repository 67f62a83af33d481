"""``mil-zoo data``: the group of commands on datasets."""

from __future__ import annotations

import click

from mil_zoo.cli.data_import import import_store


@click.group()
def data() -> None:
    """Datasets on disk."""


data.add_command(import_store)
