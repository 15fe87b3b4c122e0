"""Reads networks and results of finished runs."""
