"""``python -m caswit`` is ``caswit``."""

from caswit.cli import main

if __name__ == "__main__":
    main()
