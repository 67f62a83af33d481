"""Several runs beside each other: ranks over datasets, and published numbers."""
