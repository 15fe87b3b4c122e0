"""Tables of accuracy: searches, comparisons, and what they come to."""
