"""Writes files whole or not at all, and reads untrusted files."""
