"""Finds the packages; everything else is in setup.cfg. Shipped YAML and data cards install as packages of their own."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["mil_zoo", "mil_zoo.*"]), "mil_zoo._configs", "mil_zoo._data_cards"],
    package_dir={"mil_zoo._configs": "configs", "mil_zoo._data_cards": "data_cards"},
)
