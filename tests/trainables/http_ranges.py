"""A web server on this machine that serves byte ranges of a folder's files, or, as some servers do, does not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Served:
    """Its address, what was asked of it, and how many of the next requests it will refuse."""

    address: str = ""
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    failing: int = 0
    fails_from: int | None = None  # the number of the first request that it refuses for good
    folder: str = ""
    ranges: bool = True
    together: threading.Barrier | None = None  # requests wait here for each other
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def serving(folder: Path) -> Iterator[Served]:
    served = Served(folder=str(folder))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            asked = self.headers.get("Range")
            with served.lock:
                served.asked.append((self.path, asked))
                fails, served.failing = served.failing > 0, max(0, served.failing - 1)
                fails |= served.fails_from is not None and len(served.asked) > served.fails_from
            if served.together is not None:
                served.together.wait()
            path = folder / self.path.lstrip("/")
            if fails or not path.is_file():
                self.send_response(503 if fails else 404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            content = path.read_bytes()
            status = 200
            if asked and served.ranges:
                first, last = asked.removeprefix("bytes=").split("-")
                if int(first) >= len(content):
                    status, content = 416, b""
                else:
                    status, content = 206, content[int(first) : int(last or len(content)) + 1]
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Accept-Ranges", "bytes" if served.ranges else "none")
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    class Server(ThreadingHTTPServer):
        request_queue_size = 256

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    served.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
