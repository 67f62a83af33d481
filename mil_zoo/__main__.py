"""``python -m mil_zoo`` is ``mil-zoo``."""

from mil_zoo.cli import main

if __name__ == "__main__":
    main()
