"""Packages of the wheel: ksurgeon itself, and the top-level folders of data under names of their own."""

from setuptools import find_packages, setup

DATA = {"ksurgeon._rules": "rules", "ksurgeon._recipes": "recipes"}

setup(
    packages=[*find_packages(include=["ksurgeon", "ksurgeon.*"]), *DATA],
    package_dir=DATA,
    package_data={"ksurgeon": ["py.typed"], "ksurgeon._rules": ["*.toml"], "ksurgeon._recipes": ["*"]},
)
