"""Prints pip constraints that hold every dependency, of the tests too, at the lowest version that setup.cfg allows."""

import configparser
import re
from pathlib import Path

parser = configparser.ConfigParser()
parser.read(Path(__file__).parents[1] / "setup.cfg")
for lines in (parser["options"]["install_requires"], parser["options.extras_require"]["test"]):
    for name, version in re.findall(r"^([\w-]+)>=([\d.]+)", lines, re.MULTILINE):
        print(f"{name}=={version}")
