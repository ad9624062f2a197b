"""Pack conf/ and experiments/ into the wheel, as sq.conf and sq.experiments.

Both stand at the top of a checkout, where people read them; pyproject.toml can name such folders,
or search for packages, but not both.
"""

from setuptools import find_namespace_packages, setup

FOLDERS = {"sq.conf": "conf", "sq.experiments": "experiments"}

PACKAGES = find_namespace_packages(include=["sq*", "hydra_plugins*"], exclude=["*__pycache__*"])

setup(packages=[*PACKAGES, *FOLDERS], package_dir=FOLDERS)
