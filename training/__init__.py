"""Contains the programs, run by `python -m training.<program>`.

Installed, this folder is `keras_mhgd.training`. It imports from itself by
relative names, so that it works as both.

`options` is no program: it has the flags that programs share. `commands` runs
the programs by their names. `opening` and `closing` have what they say first
and last. `quiet` imports TensorFlow, before anything else does.
"""

from .quiet import import_tensorflow

import_tensorflow()
