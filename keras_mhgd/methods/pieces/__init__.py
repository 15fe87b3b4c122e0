"""Provides functions and layers that several methods use."""
