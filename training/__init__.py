"""Contains the programs, run by `python -m training.<program>`.

Installed, this folder is `keras_mhgd.training`. It imports from itself by
relative names, so that it works as both.

`options` and `commands` are no programs: the first has the flags that programs
share, and the second runs programs by their names.
"""

from .runs.quiet import import_tensorflow

import_tensorflow()
