"""What the Triton (GPU) backends share."""
