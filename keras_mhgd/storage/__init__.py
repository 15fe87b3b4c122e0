"""Files: written whole or not at all, read though nobody vouches for them."""
