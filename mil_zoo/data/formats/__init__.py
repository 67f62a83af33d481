"""Readers of files: what lies in them as arrays, and never code that runs."""
