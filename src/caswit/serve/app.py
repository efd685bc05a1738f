"""The web application: addresses for tiles, points, areas and attention, and the page that shows them.

Addresses name views and layers by keys that the server made, never by paths, so a request cannot reach another file.
Answers are for pages of this server only: browsers are told so, and requests that a page elsewhere makes are refused.
"""

import json
import logging
import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.metadata import distribution
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from cachetools import LRUCache, cached
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.responses import JSONResponse, Response
from PIL import Image as Pillow
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from caswit import __version__
from caswit.config.serve import Basemap
from caswit.errors import CaswitError, brief
from caswit.raster.geopackage import rings
from caswit.raster.georef import ground_of, lonlat_of
from caswit.raster.measure import measure
from caswit.raster.reader import UInt8
from caswit.raster.web_mercator import mercator_fit
from caswit.raster.windows import Window
from caswit.serve.bands import Shown
from caswit.serve.collection import Collection, View
from caswit.serve.layers import NO_CLASS, Layer, class_name
from caswit.serve.live import LiveModel

log = logging.getLogger(__name__)

TILE_PX = 256
READERS = 4
"""Tiles that are read at once, and areas that are counted."""
WAITING_READS = 24
"""Tiles and areas that wait while others are read; further ones are refused for a moment."""
KEPT_TILES = 2048
"""Drawn tiles that are kept in memory, some 20 kB each."""
WAITING = 2
"""Questions about attention that wait while one is answered; further ones are refused for a moment."""
POLYGON_READERS = 2
"""Questions about polygons that are answered at once."""
MOST_PLACES = 500
"""Places of a line that is measured."""
_FINEST_READ = 32
"""Pixels that a tile may read for each pixel that it draws, along one axis, after overviews are used."""
_PAGE = Path(__file__).parent / "page"
_TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript", ".css": "text/css", ".png": "image/png"}

_FARTHEST = 1e9
"""Pixels from the image's corner that a place on the page can be."""

Pixel = Annotated[int, Query(ge=0, description="From 0, in pixels of the image")]
Place = Annotated[int, Query(ge=-_FARTHEST, le=_FARTHEST, description="In pixels of the image")]
Side = Annotated[int, Query(ge=1, le=_FARTHEST, description="In pixels of the image")]
Scale = Annotated[float, Query(gt=0, le=1e6, description="Pixels of the image for each pixel of the screen")]
Classes = Annotated[
    str, Query(pattern=r"^(\d{1,3}(,\d{1,3}){0,255})?$", description="Class ids that are not drawn: 1,4")
]
Bands = Annotated[str, Query(max_length=40, description="Bands of an image that are shown as red, green, blue: 4,1,2")]
Places = Annotated[
    str, Query(max_length=20_000, pattern=r"^-?\d+(\.\d+)?(,-?\d+(\.\d+)?)*$", description="row,column,row,column,...")
]


def make_app(
    collection: Collection,
    live: LiveModel | None = None,
    hosts: tuple[str, ...] = ("*",),
    basemap: Basemap | None = None,
) -> FastAPI:
    """Make the application.

    Args:
        collection: Views to show.
        live: Model that answers questions about pixels.
        hosts: Host names that requests may use, against pages elsewhere that point their own name at this machine.
        basemap: A web map that the page may show under the images; None contacts nobody.
    """
    # FastAPI's /docs page loads its scripts from the network; /openapi.json has the same content without.
    title = "caswit serve"
    app = FastAPI(title=title, version=__version__, docs_url=None, redoc_url=None, default_response_class=_Json)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    app.add_middleware(
        SameOrigin, pictures_from=basemap.origin if basemap else ""
    )  # added last, so it comes first and its headers are on every answer
    app.add_exception_handler(CaswitError, partial(_unprocessable, collection))
    app.add_exception_handler(OSError, _unavailable)
    app.add_exception_handler(MemoryError, _unavailable)
    if live is not None:
        live.gate = collection.gate
    _add_page(app)
    _add_views(app, collection, live, basemap)
    polygon_readers = _Queue(POLYGON_READERS, WAITING_READS, "too many polygons are asked for at once")
    _add_points(app, collection, live, polygon_readers)
    _add_polygons(app, collection, polygon_readers)
    return app


def _add_page(app: FastAPI) -> None:
    files = _page_files()

    @app.get("/", include_in_schema=False)
    def page() -> Response:
        return Response(files["index.html"].read_bytes(), media_type=_TYPES[".html"])

    @app.get("/page/{name}", include_in_schema=False)
    def page_file(name: str) -> Response:
        if name not in files:
            raise HTTPException(404, "no such file")
        return Response(files[name].read_bytes(), media_type=_TYPES[files[name].suffix])


def _add_views(app: FastAPI, collection: Collection, live: LiveModel | None, basemap: Basemap | None) -> None:
    readers = _Queue(READERS, WAITING_READS, "too many tiles are asked for at once")
    draw = _tile_drawer(readers)

    @app.get("/api/views", summary="Every image and what can be laid over it")
    def views() -> dict[str, Any]:
        return {
            "model": None if live is None else live.loaded.name,
            "explains": live is not None and live.explains,
            "basemap": basemap and {"url": basemap.url, "credit": basemap.credit},
            "views": [_view_json(view, basemap is not None) for view in collection.views(refresh=True).values()],
        }

    @app.get(
        "/api/views/{view}/layers/{layer}/tiles/{zoom}/{col}/{row}",
        summary="A picture of 256 x 256 pixels, which are pixels of the image at the largest zoom",
        response_class=Response,
        responses={200: {"content": {"image/png": {}, "image/jpeg": {}}}},
    )
    def tile(view: str, layer: str, zoom: int, col: int, row: int, hide: Classes = "", bands: Bands = "") -> Response:
        drawn = _layer(collection, view, layer)
        shown = _shown(drawn, bands)
        largest = max_zoom(drawn)
        side = TILE_PX * 2 ** (largest - zoom) if 0 <= zoom <= largest else 0
        if not (0 <= zoom <= largest and 0 <= row * side < drawn.height and 0 <= col * side < drawn.width):
            raise HTTPException(404, f"no tile {zoom}/{col}/{row}: zoom is 0-{largest}, and it lies outside the image")
        if zoom < min_zoom(drawn):
            raise HTTPException(404, f"{drawn.title} has no overviews for zoom {zoom}; make some with gdaladdo")
        hidden = frozenset(min(int(each), NO_CLASS) for each in hide.split(",") if each)
        content, kind = draw(drawn, zoom, col, row, hidden, shown)
        # A finished map has its revision in the address of its tiles. One that is being computed may get another block
        # between the listing and this request, so its tiles must not be kept under the revision of the listing.
        keep = "max-age=3600" if drawn.done == 1 else "no-store"
        return Response(content, media_type=kind, headers={"Cache-Control": keep})

    @app.get("/api/views/{view}/layers/{layer}/areas", summary="Area of each class")
    def areas(view: str, layer: str) -> list[dict[str, Any]]:
        counted = _layer(collection, view, layer)
        if counted.kind not in ("map", "truth"):
            raise HTTPException(404, f"{counted.title} has no classes to count")
        with readers.place():
            shown = _view(collection, view)
            return counted.areas(shown.grid, shown.gsd_m)


def _add_points(app: FastAPI, collection: Collection, live: LiveModel | None, polygon_readers: "_Queue") -> None:
    # The model answers one at a time, and each that waits holds a thread, which tiles and points need too.
    questions = _Queue(1 + WAITING, 0, "the model is busy")

    @app.get("/api/views/{view}/point", summary="Place, classes and confidence of a pixel")
    def point(view: str, row: Pixel, col: Pixel) -> dict[str, Any]:
        shown = _view_of_pixel(collection, view, row, col)
        values = {layer.key: _value(layer, row, col) for layer in shown.overlays if layer.kind != "errors"}
        for outlines in shown.outlines:
            with polygon_readers.place():
                found = outlines.polygons.at(row, col)
            values[outlines.key] = found and {"id": found.class_id, "name": found.name, **found.about}
        return {
            "row": row,
            "col": col,
            "xy": ground_of(shown.grid, row + 0.5, col + 0.5),
            "lonlat": lonlat_of(shown.grid, row + 0.5, col + 0.5),
            "layers": {key: value for key, value in values.items() if value is not None},
            "model": live.confidence(shown.image.path, row, col, shown.also, shown.image.gsd_m)
            if live and shown.image
            else None,
        }

    @app.get("/api/views/{view}/attention", summary="Cross-attention of a pixel, and its class with other context")
    def attention(view: str, row: Pixel, col: Pixel) -> dict[str, Any]:
        shown = _view_of_pixel(collection, view, row, col)
        if live is None:
            raise HTTPException(404, "no model was given: start caswit serve with --model MODEL")
        if shown.image is None:
            raise HTTPException(404, f"{shown.base.title} is shown without its image, which the model would read")
        with questions.place():
            return live.attention(shown.image.path, row, col, shown.also, shown.image.gsd_m)

    @app.get("/api/views/{view}/measure", summary="Length of a line and the area that it encloses, on the ground")
    def measured(view: str, places: Places) -> dict[str, Any]:
        numbers = [float(number) for number in places.split(",")]
        if len(numbers) % 2 or not 4 <= len(numbers) <= 2 * MOST_PLACES or max(map(abs, numbers)) > _FARTHEST:
            raise HTTPException(422, f"places are 2-{MOST_PLACES} pairs of row,column, got {len(numbers)} numbers")
        pairs = [*zip(numbers[::2], numbers[1::2], strict=True)]
        shown = _view(collection, view)
        return measure(shown.grid, pairs, shown.gsd_m)._asdict()


class _Queue:
    """Lets some requests work at once and some wait; the others are told to come again.

    Each that waits holds one of the server's threads, of which there are 40 for all requests together.
    """

    def __init__(self, at_once: int, waiting: int, full: str) -> None:
        self._places, self._working = threading.BoundedSemaphore(at_once + waiting), threading.BoundedSemaphore(at_once)
        self._full = full

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold one of the places for work, or raise HTTPException where even those for waiting are taken."""
        if not self._places.acquire(blocking=False):
            raise HTTPException(503, f"{self._full}; try again in a moment", headers={"Retry-After": "2"})
        try:
            with self._working:
                yield
        finally:
            self._places.release()


def _add_polygons(app: FastAPI, collection: Collection, readers: "_Queue") -> None:

    @app.get("/api/views/{view}/polygons/{key}", summary="Polygons of a part of the image, the largest first")
    def polygons(
        view: str, key: str, row: Place, col: Place, height: Side, width: Side, px: Scale = 1.0
    ) -> dict[str, Any]:
        shown = _view(collection, view)
        outlines = next((each for each in shown.outlines if each.key == key), None)
        if outlines is None:
            raise HTTPException(404, "no such polygons; /api/views lists them")
        with readers.place():
            found, more = outlines.polygons.inside(Window(row, col, height, width), px)
        return {"left_out": more, "polygons": [{"id": p.class_id, "rings": rings(p.shape)} for p in found]}


def max_zoom(layer: Layer) -> int:
    """Return the zoom at which a pixel of a tile is a pixel of the image; at zoom 0 one tile holds the image."""
    zoom = 0
    while TILE_PX * 2**zoom < max(layer.height, layer.width):
        zoom += 1
    return zoom


def min_zoom(layer: Layer) -> int:
    """Return the smallest zoom of which a tile can be drawn without reading too many pixels."""
    zoom = max_zoom(layer)
    while zoom and 2 ** (max_zoom(layer) - zoom + 1) <= _FINEST_READ * layer.coarsest:
        zoom -= 1
    return zoom


def _tile_drawer(
    readers: _Queue,
) -> Callable[[Layer, int, int, int, frozenset[int], Shown | None], tuple[bytes, str]]:
    """Return a function that draws a tile, or finds it among those drawn lately."""

    # The revision makes tiles of a changed raster miss; they are dropped like all others, the oldest first.
    @cached(LRUCache(KEPT_TILES), key=lambda layer, *what: (layer.key, layer.revision, *what), lock=threading.Lock())
    def draw(
        layer: Layer, zoom: int, col: int, row: int, hidden: frozenset[int], bands: Shown | None
    ) -> tuple[bytes, str]:
        side = TILE_PX * 2 ** (max_zoom(layer) - zoom)
        with readers.place():
            return _encoded(layer.picture(Window(row * side, col * side, side, side), TILE_PX, TILE_PX, hidden, bands))

    return draw


def _encoded(picture: UInt8) -> tuple[bytes, str]:
    """Encode as JPEG a photograph without transparent pixels, as PNG everything else."""
    file = BytesIO()
    # A photograph has many values of red, a class map few: JPEG would blur the colours of its classes.
    if (picture[..., 3] == 255).all() and len(np.unique(picture[::8, ::8, 0])) > 32:
        Pillow.fromarray(picture[..., :3]).save(file, format="JPEG", quality=88)
        return file.getvalue(), "image/jpeg"
    Pillow.fromarray(picture).save(file, format="PNG", compress_level=1)
    return file.getvalue(), "image/png"


def _view_json(view: View, on_basemap: bool) -> dict[str, Any]:
    bounds = [lonlat_of(view.grid, *corner) for corner in ((0, 0), (view.grid.height, view.grid.width))]
    fit = mercator_fit(view.grid) if on_basemap else None
    return {
        "key": view.key,
        "title": view.base.title,
        "height": view.grid.height,
        "width": view.grid.width,
        "gsd_m": view.gsd_m,
        "corners": None if None in bounds else bounds,
        "mercator": fit and fit._asdict(),
        "max_zoom": max_zoom(view.base),
        "min_zoom": min_zoom(view.base),
        "layers": [_layer_json(layer) for layer in view.layers],
        "polygons": [
            {"key": each.key, "title": each.title, "revision": str(each.polygons.revision)} for each in view.outlines
        ],
    }


def _layer_json(layer: Layer) -> dict[str, Any]:
    return {
        "key": layer.key,
        "kind": layer.kind,
        "title": layer.title,
        "revision": str(layer.revision),
        "done": layer.done,
        "min_zoom": min_zoom(layer),
        "classes": [{"id": c.id, "name": c.name, "color": c.color, "ignore": c.ignore} for c in layer.classes],
        # Of an image: what is shown as red, green and blue, and the names of all that could be.
        "shown": layer.bands if layer.kind == "image" else [],
        "bands": layer.names,
    }


def _shown(layer: Layer, bands: str) -> Shown | None:
    """Return the bands that an address asks for; None: the usual ones."""
    if not bands:
        return None
    if layer.kind != "image":
        raise HTTPException(422, f"{layer.title} is no image, so it has no bands to choose; leave bands out")
    numbers = [int(n) for n in bands.split(",")] if re.fullmatch(r"\d{1,5},\d{1,5},\d{1,5}", bands, re.ASCII) else []
    if not numbers or not 1 <= min(numbers) <= max(numbers) <= len(layer.names):
        there = f"three of 1-{len(layer.names)}, the bands of {layer.title}"
        raise HTTPException(422, f"bands must be {there}, got {brief(bands)}; try {','.join(map(str, layer.bands))}")
    red, green, blue = numbers
    return red, green, blue


def _value(layer: Layer, row: int, col: int) -> Any:
    value = int(layer.values(Window(row, col, 1, 1), 1, 1)[0, 0])
    if value == NO_CLASS:
        return None
    return {"confidence": value / 100} if layer.kind == "confidence" else class_name(layer.classes, value)


def _view(collection: Collection, key: str) -> View:
    view = collection.views().get(key)
    if view is None:
        raise HTTPException(404, "no such view; /api/views lists them")
    return view


def _layer(collection: Collection, view: str, key: str) -> Layer:
    layer = _view(collection, view).layer(key)
    if layer is None:
        raise HTTPException(404, "no such layer; /api/views lists them")
    return layer


def _view_of_pixel(collection: Collection, view: str, row: int, col: int) -> View:
    shown = _view(collection, view)
    if row >= shown.grid.height or col >= shown.grid.width:
        size = f"{shown.grid.height} rows and {shown.grid.width} columns"
        raise HTTPException(404, f"row {row}, column {col} lies outside {shown.base.title}, which has {size}")
    return shown


def _unprocessable(collection: Collection, _request: Request, error: Exception) -> JSONResponse:
    """Answer an error that the user can fix, such as a pixel without data, with its one line; folders stay here."""
    said = str(error)
    for folder in (*collection.gate.folders, *(file.parent for file in collection.gate.files)):
        said = said.replace(f"{folder}/", "")
    return JSONResponse({"detail": said}, status_code=422)


def _unavailable(_request: Request, _error: Exception) -> JSONResponse:
    """Answer what may work later: out of memory or of file handles, a disk that does not answer."""
    detail = "the server cannot read this now; try again in a moment"
    return JSONResponse({"detail": detail}, status_code=503, headers={"Retry-After": "2"})


class _Json(JSONResponse):
    """JSON of anything that files hold: numbers that are not finite are null, letters that are not text are escaped."""

    def render(self, content: Any) -> bytes:
        """Return the bytes to send."""
        return json.dumps(_finite(content), allow_nan=False, separators=(",", ":")).encode()


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class SameOrigin:
    """Refuse requests that pages elsewhere make, and tell browsers to keep the answers from such pages."""

    HEADERS: ClassVar = {
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        # Leaflet places tiles by the style attribute of their elements; attention comes as data: pictures.
        "Content-Security-Policy": (
            "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        ),
    }

    def __init__(self, app: ASGIApp, pictures_from: str = "") -> None:
        self.app = app
        policy = self.HEADERS["Content-Security-Policy"]
        self.headers = {**self.HEADERS, "Content-Security-Policy": policy.replace("blob:", f"blob: {pictures_from}", 1)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self.headers)
            await send(message)

        headers = Headers(scope=scope)
        # Programs that are no browsers send no such header. "none" is an address that the user typed. A page on another
        # port of this machine is "same-site", and as foreign as any. Following a link to the page is fine.
        foreign = headers.get("sec-fetch-site", "none") not in ("same-origin", "none")
        followed = scope["path"] == "/" and headers.get("sec-fetch-dest") == "document"
        answer = self.app
        if foreign and not followed:
            answer = _Json({"detail": "pages elsewhere cannot use this server"}, status_code=403)
        await answer(scope, receive, send_with_headers)


def _page_files() -> dict[str, Path]:
    """Return every file of the page by its name: ours, and Leaflet's from the package that carries them."""
    ours = {file.name: file for file in _PAGE.iterdir() if file.suffix in _TYPES}
    leaflet = distribution("xstatic-leaflet")
    theirs = {f.name: Path(str(leaflet.locate_file(f))) for f in leaflet.files or () if f.suffix in (".js", ".css")}
    return ours | {name: theirs[name] for name in ("leaflet.js", "leaflet.css")}
