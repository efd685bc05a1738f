"""caswit serve: listen, print the address, answer until interrupted."""

import socket
from collections.abc import Callable
from pathlib import Path

import uvicorn

from caswit.config import ServeConfig
from caswit.errors import ConfigError
from caswit.serve.app import make_app
from caswit.serve.collection import Collection
from caswit.serve.live import LiveModel

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(where: Path, model: Path | None, settings: ServeConfig, *, say: Callable[[str], None]) -> None:
    """Serve a folder or a raster until interrupted.

    Args:
        where: Folder or raster to show.
        model: Model folder; without one there is no attention and no live confidence.
        settings: Where to listen and how to compute.
        say: Called with the lines to print, the address among them.

    Raises:
        CaswitError: The folder, the model or the address cannot be used.
    """
    live = None if model is None else LiveModel(model, settings)
    info = None if live is None else live.loaded.info
    collection = Collection(
        where,
        table=None if info is None else info.classes,
        bands=(1, 2, 3) if info is None else info.bands,
    )
    count = len(collection.views())
    if not count:
        raise ConfigError(f"{where}: holds no image to show; give a folder with RGB uint8 rasters, or one of them")
    # A page elsewhere can point its own name at this machine and ask the visitor's browser to read from it. On the
    # loopback only loopback names are answered; on another address the names of the machine are not known.
    hosts = (*_LOOPBACK, "[::1]") if settings.host in _LOOPBACK else ("*",)
    server = uvicorn.Server(uvicorn.Config(make_app(collection, live, hosts), log_level="warning", access_log=False))
    with _bound(settings) as listening:
        address, port = listening.getsockname()[:2]
        say(f"{count} image{'s' * (count > 1)}: http://{f'[{address}]' if ':' in address else address}:{port}")
        if settings.host not in _LOOPBACK:
            say("every machine that can reach this one can read what is served; there is no password")
        say("stop with Ctrl-C")
        server.run(sockets=[listening])


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
