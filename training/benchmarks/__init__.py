"""What `training.benchmark` times, and how."""
