"""Makes the tables of accuracy: searches, comparisons and a summary."""
