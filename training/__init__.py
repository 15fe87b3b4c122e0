"""Contains the programs, run by `python -m training.<program>`.

Installed, this folder is `keras_mhgd.training`. It imports from itself by
relative names, so that it works as both.

`options` and `commands` are no programs: the first has the flags that programs
share, and the second runs programs by their names.
"""

import os

# The library then imports TensorFlow without its log, so it comes first.
os.environ["KERAS_MHGD_PROGRAM"] = "1"

import keras_mhgd  # noqa: E402, F401
