"""Fixtures that several test folders share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data in MIL_ZOO_REAL_DATA: unset, the test is skipped; set but missing, it fails."""
    variable = os.environ.get("MIL_ZOO_REAL_DATA")
    if not variable:
        pytest.skip("MIL_ZOO_REAL_DATA is not set")
    folder = Path(variable)
    assert folder.is_dir(), f"MIL_ZOO_REAL_DATA is {variable}, which is not a folder"
    return folder
