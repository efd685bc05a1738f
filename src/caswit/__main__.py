"""``python -m caswit`` is ``caswit``."""

import signal

from caswit.cli.signals import quiet_end


def main() -> None:
    """Run a command as the process, which a signal ends quietly while our own modules are imported too."""
    try:
        with quiet_end():
            from caswit.cli.main import main as run

            run()
    finally:
        # What is left is Python's own end, which would print where it was interrupted.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)


if __name__ == "__main__":
    main()
