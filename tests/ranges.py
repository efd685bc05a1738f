"""Serve one file and answer ranges, as object stores do: ``python ranges.py FILE LOG``.

In a process of its own: GDAL holds the interpreter's lock while it waits for an answer.
"""

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FILE, LOG = Path(sys.argv[1]), Path(sys.argv[2])


class Ranges(BaseHTTPRequestHandler):
    """Answers GET and HEAD for the file's name in any folder; writes the ranges asked for to the log."""

    def do_GET(self) -> None:
        if not self.path.endswith(f"/{FILE.name}"):
            self.send_error(404)
            return
        content, asked = FILE.read_bytes(), self.headers.get("Range")
        first, last = 0, len(content) - 1
        if asked:
            first, end = (int(n) for n in asked.removeprefix("bytes=").split("-"))
            last = min(last, end)
            with LOG.open("a") as log:
                print(first, last, file=log)
        self.send_response(206 if asked else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[first : last + 1])

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Say nothing."""


with ThreadingHTTPServer(("127.0.0.1", 0), Ranges) as server:
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()
