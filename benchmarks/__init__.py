"""Contains programs that measure the library, and their results."""
