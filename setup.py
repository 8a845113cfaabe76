"""The packaging door for old tools; everything it says is in pyproject.toml."""

from setuptools import setup

setup()
