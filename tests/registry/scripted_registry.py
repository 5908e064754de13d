"""A registry that serves built images over real sockets and does what a test tells it to do wrong.

A good registry never breaks a connection in the middle of a blob or lies about a digest; this one does.
"""

import contextlib
import json
import socket
import ssl
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class ScriptedRegistry:
    """An HTTP server on a free loopback port; ``with`` starts and stops it.

    ``behaviours`` maps a path suffix to a function ``(handler) -> bool`` that may answer in its own way
    (True) or let the ordinary answer be given (False).
    """

    def __init__(self, certificate=None):
        self.content = {}
        self.requests = []
        self.counts = Counter()
        self.behaviours = {}
        self.token = None
        self.lock = threading.Lock()
        registry = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle(self):
                with contextlib.suppress(ConnectionError, ssl.SSLError):
                    if certificate is None and self.connection.recv(1, socket.MSG_PEEK) == b"\x16":
                        return  # somebody tries TLS: hang up, as other servers do
                    super().handle()

            def do_GET(self):
                with contextlib.suppress(ConnectionError, ssl.SSLError):
                    registry.answer(self)

            def log_message(self, *_):
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
            self.scheme = "https"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))

    @property
    def address(self):
        return f"127.0.0.1:{self.server.server_port}"

    @property
    def url(self):
        return f"{self.scheme}://{self.address}"

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    # what is served

    def serve(self, image, repository="team/app", tag="1"):
        """Serve an image; returns its reference."""
        for digest, body in image.blobs.items():
            self.content[f"/v2/{repository}/blobs/{digest}"] = ("application/octet-stream", body)
        self.manifest(repository, tag, image.manifest_bytes, image.manifest["mediaType"])
        self.manifest(repository, image.digest, image.manifest_bytes, image.manifest["mediaType"])
        return f"{self.address}/{repository}:{tag}"

    def manifest(self, repository, target, body, media_type):
        self.content[f"/v2/{repository}/manifests/{target}"] = (media_type, body)

    def behave(self, suffix, function, times=1):
        """Have requests whose path ends so answered by ``function``, that many times."""
        left = [times]

        def limited(handler):
            with self.lock:
                if not left[0]:
                    return False
                left[0] -= 1
            return function(handler) is not False

        self.behaviours[suffix] = limited

    def fetched(self, text):
        """How many requests had the text in their path."""
        return sum(count for path, count in self.counts.items() if text in path)

    # answering

    def answer(self, handler):
        path = handler.path
        with self.lock:
            self.requests.append((path, dict(handler.headers)))
            self.counts[path] += 1
        for suffix, behaviour in list(self.behaviours.items()):
            if path.partition("?")[0].endswith(suffix) and behaviour(handler):
                return
        if path == "/v2/":
            reply(handler, 200, b"{}")
        elif self.token and handler.headers.get("Authorization") != f"Bearer {self.token}":
            repository = path.removeprefix("/v2/").rpartition("/")[0].rpartition("/")[0]
            challenge = f'Bearer realm="{self.url}/token",service="test",scope="repository:{repository}:pull"'
            reply(handler, 401, b"{}", {"WWW-Authenticate": challenge})
        elif path in self.content:
            media_type, body = self.content[path]
            self.body(handler, media_type, body)
        else:
            errors = {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "no such \x1b[31mthing"}]}
            reply(handler, 404, json.dumps(errors).encode())

    def body(self, handler, media_type, body):
        start = handler.headers.get("Range", "").removeprefix("bytes=").rstrip("-")
        if start:
            headers = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
            reply(handler, 206, body[int(start) :], headers)
        else:
            reply(handler, 200, body, {"Content-Type": media_type})


def reply(handler, status, body, headers=None, *, stated=None, cut=None):
    """An answer; ``stated`` is a false Content-Length, ``cut`` ends the connection after that many bytes."""
    handler.send_response(status)
    for key, value in (headers or {}).items():
        handler.send_header(key, value)
    handler.send_header("Content-Length", str(len(body) if stated is None else stated))
    handler.end_headers()
    handler.wfile.write(body if cut is None else body[:cut])
    if cut is not None:
        handler.wfile.flush()
        handler.close_connection = True
