"""A dataset packed into a few memory-mapped files."""
