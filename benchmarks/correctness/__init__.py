"""Checks methods on devices and tasks, and lists points of many pairs."""
