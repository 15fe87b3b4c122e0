"""Trains in run folders, resumes there, and compares several runs."""
