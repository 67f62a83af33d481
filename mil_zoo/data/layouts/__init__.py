"""How features lie on disk: one file a layout, each of which says how sure it is of a path."""
