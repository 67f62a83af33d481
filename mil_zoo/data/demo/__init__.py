"""The simulated slides of the demo."""
