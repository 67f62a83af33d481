"""What tests of readers share."""

import pytest


@pytest.fixture
def tmp_path(tmp_path):
    """A folder with nothing beside it: readers look there for patches, and must not find those of other tests."""
    own = tmp_path / "own"
    own.mkdir()
    return own
