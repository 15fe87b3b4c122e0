"""The contract of a method, and what methods of one kind inherit."""
