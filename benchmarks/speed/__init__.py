"""What `benchmarks.speed` times, and how."""
