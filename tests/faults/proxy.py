"""A proxy on loopback before the local Hub, which answers one request with a fault."""

import http.client
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

FAULTS = ("429", "503", "500", "451", "403", "login page", "redirects", "empty", "cut", "closed",
          "no sha", "other content")  # fmt: skip
"""What may come in place of an answer."""


class Proxy:
    """Forwards requests to a Hub; the one of a number is answered with a fault, once or always."""

    def __init__(self, upstream: str) -> None:
        self.addresses = {upstream: ""}
        """Each address behind the proxy, with the proxy's own in its place."""
        self.fault: str | None = None
        self.at = -1
        self.seen = 0
        self.always = False
        self.endpoint = ""

    def set(self, fault: str | None, at: int = -1, *, always: bool = False) -> None:
        """Answer request number `at` (and all after it) with a fault, counted from now."""
        self.fault, self.at, self.always, self.seen = fault, at, always, 0


@contextmanager
def proxy(*upstreams: str) -> Iterator[Proxy]:
    """Serve until the block ends, before the Hub and its storage, whose addresses are replaced."""
    state = Proxy(upstreams[0])
    servers = [_server(state, upstream) for upstream in upstreams]
    ports = [server.server_address[1] for server in servers]
    state.addresses = {
        u: f"http://127.0.0.1:{port}" for u, port in zip(upstreams, ports, strict=True)
    }
    state.endpoint = state.addresses[upstreams[0]]
    threads = [threading.Thread(target=each.serve_forever, daemon=True) for each in servers]
    for thread in threads:
        thread.start()
    try:
        yield state
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()


def _server(state: Proxy, upstream: str) -> http.server.ThreadingHTTPServer:
    place = urlsplit(upstream)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"  # one request a connection: none is mixed with another

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

        def answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length) if length else None
            number, state.seen = state.seen, state.seen + 1
            hit = number >= state.at if state.always else number == state.at
            if state.fault is not None and state.at >= 0 and hit:
                self.fail(state.fault, body)
            else:
                self.forward(body, None)

        def forward(self, body: bytes | None, fault: str | None) -> None:
            to = http.client.HTTPConnection(str(place.hostname), place.port)
            headers = {k: v for k, v in self.headers.items() if k.lower() != "host"}
            to.request(self.command, self.path, body, headers)
            answer = to.getresponse()
            content = answer.read()
            for behind, before in state.addresses.items():
                content = content.replace(behind.encode(), before.encode())
            if fault == "no sha":
                content = content.replace(b'"sha"', b'"hash"')
            if fault == "other content" and content:
                middle = len(content) // 2
                content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
            self.send_response(answer.status)
            for key, value in answer.getheaders():
                if key.lower() not in ("transfer-encoding", "connection", "content-length", "date"):
                    for behind, before in state.addresses.items():
                        value = value.replace(behind, before)
                    self.send_header(key, value)
            said = answer.getheader("Content-Length") if self.command == "HEAD" else None
            self.send_header("Content-Length", said or str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content[: len(content) // 2] if fault == "cut" else content)
            to.close()

        def fail(self, fault: str, body: bytes | None) -> None:
            if fault in ("cut", "no sha", "other content"):
                self.forward(body, fault)
                return
            if fault == "closed":
                self.close_connection = True
                self.connection.close()
                return
            status = int(fault) if fault.isdecimal() else 302 if fault == "redirects" else 200
            content = b"<html>Please log in</html>" if fault == "login page" else b""
            self.send_response(status)
            if fault == "redirects":
                self.send_header("Location", self.path)
            if fault == "429":
                self.send_header("Retry-After", "0")
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    return http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
