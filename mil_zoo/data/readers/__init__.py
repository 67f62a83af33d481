"""Readers of feature files, one file a layout."""
