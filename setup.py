"""The part files of `hparams/` are installed as `omnikit/part_files`; all else stands in setup.cfg."""

from setuptools import find_namespace_packages, setup

CODE = find_namespace_packages(include=["omnikit", "omnikit.*"], exclude=["*.pretrained*", "*.part_files"])

setup(
    packages=[*CODE, "omnikit.part_files"],
    package_dir={"omnikit.part_files": "hparams"},
)
