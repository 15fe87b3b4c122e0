"""Writes what the programs say first and last."""
