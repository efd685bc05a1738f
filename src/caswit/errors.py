"""Errors a user can fix. The command line prints them in one line and exits with status 2.

CaswitError
├── ConfigError   a setting or recipe is wrong
├── DataError     a dataset, raster or label is wrong
└── ModelError    a model folder, weights or a model's input is wrong
"""


class CaswitError(Exception):
    """Something the user can fix: the message says what is wrong, the value, and what to try."""


class ConfigError(CaswitError):
    """A setting, or a combination of settings, is not allowed."""


class DataError(CaswitError):
    """A dataset description, a raster or a label cannot be used as it is."""


class ModelError(CaswitError):
    """A model folder or its weights cannot be used, or a model was given the wrong input."""


class Stopped(Exception):
    """A training was told to stop before its end, and is saved: the message says where. Not an error.

    Args:
        message: One line; empty in the processes of a run that leave messages to its first.
        interrupted: By Ctrl-C.
    """

    def __init__(self, message: str, *, interrupted: bool = False) -> None:
        super().__init__(message)
        self.interrupted = interrupted
