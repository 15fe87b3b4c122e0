"""Defines the base classes of methods and their contract."""
