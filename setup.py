"""The packages of a wheel. A wheel has conf/ and sweeps/ inside the package, which pyproject.toml alone can't say."""

from setuptools import find_namespace_packages, setup

setup(packages=[*find_namespace_packages(include=["harness*"]), "harness.shipped.conf", "harness.shipped.sweeps"])
