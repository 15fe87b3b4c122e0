"""Functions and layers that several methods are made of."""
