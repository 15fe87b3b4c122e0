"""Says which folders are packages; everything else is in `pyproject.toml`.

`training` and the trained networks stand at the top of the repository. They are
installed inside `keras_mhgd`, so that no other top-level name is taken.
"""

from pathlib import Path

from setuptools import find_packages, setup

# git keeps no empty folder, so either may be missing.
MODELS = [
    name
    for name in ("teachers", "students")
    if Path("saved_models", name).is_dir()
]

setup(
    packages=[
        *find_packages(include=["keras_mhgd*"]),
        *(
            f"keras_mhgd.{name}"
            for name in find_packages(include=["training*"])
        ),
        # These hold only data.
        "keras_mhgd.training.reports.templates",
        "keras_mhgd.saved_models",
        *(f"keras_mhgd.saved_models.{name}" for name in MODELS),
    ],
    package_dir={
        "keras_mhgd.training": "training",
        "keras_mhgd.saved_models": "saved_models",
    },
    package_data={
        "keras_mhgd": ["py.typed", "data/*.npz", "data/*.md"],
        "keras_mhgd.training.reports": ["*.toml"],
        "keras_mhgd.training.reports.templates": ["*"],
        "keras_mhgd.saved_models": ["presets.json"],
        **{f"keras_mhgd.saved_models.{name}": ["*.keras"] for name in MODELS},
    },
)
