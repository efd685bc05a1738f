"""``python -m caswit`` is ``caswit``."""

from caswit.cli.main import main

if __name__ == "__main__":
    main()
