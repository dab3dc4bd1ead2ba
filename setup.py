"""The part files of `hparams/` are installed as `omnikit/part_files`, and the training script of
`recipes/VoiceAssistant/QA` in `omnikit/training_script`; all else stands in setup.cfg.
"""

from setuptools import find_namespace_packages, setup

FILES = ("*.pretrained*", "*.part_files", "*.training_script")
CODE = find_namespace_packages(include=["omnikit", "omnikit.*"], exclude=FILES)

setup(
    packages=[*CODE, "omnikit.part_files", "omnikit.training_script"],
    package_dir={"omnikit.part_files": "hparams", "omnikit.training_script": "recipes/VoiceAssistant/QA"},
)
