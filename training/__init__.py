"""Contains the programs, run by `python -m training.<program>`.

`options` is no program: it has the flags that programs share.
"""
