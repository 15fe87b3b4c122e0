"""Programs that measure the library, and what they found."""
