"""One download by HTTP, within limits of time and size, which another thread can end."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import threading
import urllib.request
from contextlib import suppress
from typing import Any

from ftrain.text import readable

SILENCE = 60.0  # seconds without any data after which a download fails
LONGEST = 600.0  # seconds after which it fails, however much data comes
MAX_BYTES = 100_000_000
_CHUNK = 2**18


class Fetch:
    """A download.

    A server may redirect to another, but from a public address neither to this machine nor into its network: a table
    from a stranger could make ftrain ask for something there that only you may see.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._ended = threading.Event()
        self._sockets: list[socket.socket] = []
        self._was_public = False

    def end(self) -> None:
        """Makes `content` fail soon, whatever it waits for."""
        self._ended.set()
        for each in list(self._sockets):
            with suppress(OSError):
                socket.socket.shutdown(each, socket.SHUT_RDWR)  # of the connection itself, below TLS

    def content(self) -> bytes:
        """What the URL, of HTTP or HTTPS, leads to.

        Raises:
          OSError, ValueError, http.client.HTTPException: if it cannot be downloaded.
        """
        timer = threading.Timer(LONGEST, self.end)
        timer.daemon = True
        timer.start()
        try:
            found = self._content()
        except (OSError, ValueError, http.client.HTTPException):
            self._check_ended()
            raise
        finally:
            timer.cancel()
        self._check_ended()  # the end of a connection may look like the end of the data
        return found

    def _content(self) -> bytes:
        # Not urlopen, which also opens file:// and ftp://, and follows redirects there.
        opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(),
            _over(urllib.request.HTTPHandler(), http.client.HTTPConnection, self),
            _over(urllib.request.HTTPSHandler(), http.client.HTTPSConnection, self),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPRedirectHandler(),
            urllib.request.HTTPErrorProcessor(),
            urllib.request.UnknownHandler(),
        ):
            opener.add_handler(handler)
        request = urllib.request.Request(self.url, headers={"User-Agent": "ftrain"})
        with opener.open(request, timeout=SILENCE) as response:
            expected = response.headers.get("Content-Length")
            content = bytearray()
            while part := response.read1(_CHUNK):
                self._check_ended()
                content += part
                if len(content) > MAX_BYTES:
                    raise ValueError(f"it is larger than {readable(MAX_BYTES)}")
            if expected is not None and expected.isdecimal() and len(content) != int(expected):
                raise ValueError(f"the connection ended after {len(content)} of {expected} bytes")
            if not content:
                raise ValueError("it is empty")
        return bytes(content)

    def connected(self, connection: socket.socket) -> None:
        """Notes a connection, before anything is asked for over it.

        Raises:
          OSError: if it may not be used.
        """
        self._sockets.append(connection)
        self._check_ended()
        public = is_public(connection.getpeername()[0])
        if self._was_public and not public:
            raise OSError("it is redirected from a public address to one of this machine or its network")
        self._was_public = public

    def _check_ended(self) -> None:
        if self._ended.is_set():
            raise TimeoutError(f"it took longer than {LONGEST:g} s")


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet, and neither of this machine nor of a network around it.

    >>> [is_public(each) for each in ("127.0.0.1", "192.168.1.1", "169.254.169.254", "::ffff:10.0.0.1", "8.8.8.8")]
    [False, False, False, False, True]
    """
    number = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(number, "ipv4_mapped", None)
    return (mapped or number).is_global


def _over(handler: Any, kind: type[http.client.HTTPConnection], fetch: Fetch) -> Any:
    """A handler of urllib whose connections are told to `fetch`."""

    class Connection(kind):  # type: ignore[valid-type,misc]
        def connect(self) -> None:
            super().connect()
            try:
                fetch.connected(self.sock)
            except OSError:
                self.close()
                raise

    def do_open(_: Any, request: urllib.request.Request, **options: Any) -> Any:
        return original(Connection, request, **options)

    original, handler.do_open = handler.do_open, do_open
    return handler
