"""Says which folders are packages; everything else is in `pyproject.toml`.

`training` and the trained networks stand at the top of the repository. They are
installed inside `keras_mhgd`, so that no other top-level name is taken.
"""

from setuptools import find_packages, setup

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
        "keras_mhgd.saved_models.teachers",
        "keras_mhgd.saved_models.students",
    ],
    package_dir={
        "keras_mhgd.training": "training",
        "keras_mhgd.saved_models": "saved_models",
    },
    package_data={
        "keras_mhgd": ["py.typed", "data/*.npz", "data/*.md"],
        "keras_mhgd.training.reports": ["*.toml"],
        "keras_mhgd.training.reports.templates": ["*"],
        "keras_mhgd.saved_models": ["presets.json", "README.md"],
        "keras_mhgd.saved_models.teachers": ["*.keras"],
        "keras_mhgd.saved_models.students": ["*.keras"],
    },
)
