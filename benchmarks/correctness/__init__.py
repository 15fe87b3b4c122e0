"""Every method on every device and task, and the points of many pairs."""
