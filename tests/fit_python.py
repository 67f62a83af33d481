"""Says in one sentence that this Python cannot run the package, before anything is installed. Runs on any Python 3."""

import configparser
import re
import sys
from pathlib import Path


def unfit(version: tuple, required: str) -> str:
    """What is wrong with Python ``version`` (major, minor) where ``required`` is ">=3.10,<3.15"; "" where it fits."""
    lowest, above = (tuple(map(int, number.split("."))) for number in re.findall(r"[\d.]+", required))
    if lowest <= version < above:
        return ""
    last = (above[0], above[1] - 1)
    return (
        "mil-zoo runs on Python {}.{} to {}.{} and this is {}.{}; ".format(*lowest, *last, *version)
        + "name another, for instance: make bench PYTHON=python3.12"
    )


if __name__ == "__main__":
    parser = configparser.ConfigParser()
    parser.read(str(Path(__file__).resolve().parent.parent / "setup.cfg"))
    sys.exit(unfit(sys.version_info[:2], parser["options"]["python_requires"]) or None)
