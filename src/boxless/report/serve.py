"""The page of runs that last, served to this machine alone."""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from boxless.errors import UserError
from boxless.report.build import make_page, read_reports

ADDRESS = "127.0.0.1"
WATCHED = ("metrics.csv", "progress.json", "summary.json", "comparison.csv", "gallery.json", "captions.json")
"""Files that say that there is news."""


def make_server(runs: Sequence[str], port: int) -> ThreadingHTTPServer:
    """A server of the page at / and of a word that changes with it at /state.

    Raises:
        UserError: if the port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers.get("Host", "").rpartition(":")[0] not in (ADDRESS, "localhost"):
                self.send_error(403)  # another site's page, by a name of its own that leads here
            elif self.path == "/":
                self._answer(make_page(read_reports(runs), live=state(runs)), "text/html; charset=utf-8")
            elif self.path == "/state":
                self._answer(state(runs), "text/plain; charset=utf-8")
            else:
                self.send_error(404)

        def _answer(self, text: str, kind: str) -> None:
            body = text.encode()
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing of every request."""

    try:
        return ThreadingHTTPServer((ADDRESS, port), Handler)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"port {port}: cannot be used ({reason}); name another, or 0 for any") from error


def serve(runs: Sequence[str], port: int, quiet: bool) -> None:
    """Serve until interrupted."""
    with make_server(runs, port) as server:
        if not quiet:
            print(f"watching: http://{ADDRESS}:{server.server_port}/ (Ctrl-C ends it)", flush=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever()


def state(runs: Sequence[str]) -> str:
    """A word that changes when a file of the runs does."""
    digest = hashlib.sha256()
    for run in runs:
        for file in sorted(path for name in WATCHED for path in Path(run).rglob(name)):
            try:
                digest.update(f"{file} {file.stat().st_mtime_ns}".encode())
            except OSError:  # replaced just now
                continue
    return digest.hexdigest()[:16]
