"""The shipped configurations; in an installed package this folder is ``mil_zoo._configs``."""
