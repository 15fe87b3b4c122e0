"""Times training steps and their parts, and compares them."""
