"""What the Numba (CPU) backends share."""
