"""Reads networks and results of finished runs; describes the machine."""
