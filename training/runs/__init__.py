"""Run folders: training in them, resuming, comparing several."""
