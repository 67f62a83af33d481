"""``python -m mil_zoo`` is ``mil-zoo``."""

from mil_zoo.cli import console

if __name__ == "__main__":
    console()
