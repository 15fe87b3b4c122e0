"""Programs: `python -m training.<program>`."""
