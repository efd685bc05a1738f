"""caswit serve: listen, print the address, answer until interrupted."""

import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import uvicorn

from caswit.config import ServeConfig, check
from caswit.errors import ConfigError
from caswit.raster.gate import confined
from caswit.serve.app import make_app
from caswit.serve.bands import numbers_of
from caswit.serve.collection import Collection
from caswit.serve.live import LiveModel
from caswit.weights.image_bands import parse_also

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_MAX_CONNECTIONS = 500
"""Connections beyond this number are answered with status 503."""


def serve(
    where: Path | Sequence[Path], model: Path | None, settings: ServeConfig, *, say: Callable[[str], None]
) -> None:
    """Serve folders and rasters until interrupted.

    Args:
        where: What to show: a folder, a raster with what belongs to it in its folder, or several of either.
        model: Model folder; without one there is no attention and no live confidence.
        settings: Where to listen and how to compute.
        say: Called with the lines to print, the address among them.

    Raises:
        CaswitError: The folder, the model or the address cannot be used.
    """
    with confined():
        _serve(where, model, settings, say)


def _serve(where: Path | Sequence[Path], model: Path | None, settings: ServeConfig, say: Callable[[str], None]) -> None:
    further = parse_also(settings.also)
    check(model is not None or not further, f"also needs a model that reads {settings.also}; add --model MODEL")
    live = None if model is None else LiveModel(model, settings, further)
    info = None if live is None else live.loaded.info
    collection = Collection(
        where,
        table=None if info is None else info.classes,
        bands=settings.bands,
        numbers={} if info is None else numbers_of(info.model.band_names, info.bands),
    )
    count = len(collection.views())
    if not count:
        names = where if isinstance(where, Path) else " ".join(map(str, where))
        raise ConfigError(
            f"{names}: holds no image or map to show; give a folder with rasters of three bands or more, or with maps, "
            "or these files"
        )
    # A page elsewhere can point its own name at this machine and ask the visitor's browser to read from it. On the
    # loopback only loopback names are answered; on another address the names of the machine are not known.
    hosts = (*_LOOPBACK, "[::1]") if settings.host in _LOOPBACK else ("*",)
    server = uvicorn.Server(
        uvicorn.Config(
            make_app(collection, live, hosts, settings.background),
            log_level="warning",
            access_log=False,
            limit_concurrency=_MAX_CONNECTIONS,
        )
    )
    with _bound(settings) as listening:
        address, port = listening.getsockname()[:2]
        say(f"{_counted(collection)}: http://{f'[{address}]' if ':' in address else address}:{port}")
        if settings.host not in _LOOPBACK:
            say("every machine that can reach this one can read what is served; there is no password")
        say("stop with Ctrl-C")
        server.run(sockets=[listening])


def _counted(collection: Collection) -> str:
    """Return how many images are shown, and how many maps without one."""
    views = collection.views().values()
    images = sum(view.image is not None for view in views)
    numbers = {"image": images, "map": len(views) - images}
    return ", ".join(f"{n} {what}{'s' * (n > 1)}" for what, n in numbers.items() if n)


def _bound(settings: ServeConfig) -> socket.socket:
    # Bound here and not by uvicorn, so that port 0 is known before it is printed and a taken port is one line.
    listening = socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
    except OSError as error:
        listening.close()
        hint = "try --port 0 for a free one" if settings.port else "try --host 127.0.0.1"
        raise ConfigError(f"cannot listen on {settings.host}:{settings.port} ({error.strerror}); {hint}") from error
    return listening
