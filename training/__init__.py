"""Contains the programs, run by `python -m training.<program>`."""
