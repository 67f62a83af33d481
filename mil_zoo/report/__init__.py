"""Tables and figures drawn from a run directory alone: nothing here predicts, and nothing imports torch."""
