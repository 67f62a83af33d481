"""The shipped data cards; in an installed package this folder is ``mil_zoo._data_cards``."""
