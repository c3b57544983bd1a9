"""Images at URLs, each downloaded once to the user's cache folder."""

from __future__ import annotations

import hashlib
import http.client
import re
import urllib.parse
import urllib.request
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import platformdirs

from ftrain.data.source import Preparing
from ftrain.disk import durable
from ftrain.errors import DataError
from ftrain.text import readable, shown

AT_ONCE = 8
SILENCE = 60.0  # seconds without any data after which a download fails
MAX_BYTES = 100_000_000  # of one image
NAMED = 3  # failures that are named
_CHUNK = 2**18


def is_url(path: str) -> bool:
    """Whether a path is a URL, of whatever kind.

    >>> is_url("https://example.org/1.jpg"), is_url("photos/1.jpg")
    (True, False)
    """
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path) is not None


def can_download(url: str) -> bool:
    """Whether a URL is one of HTTP or HTTPS with a host. Others, such as file://, are never opened.

    >>> can_download("https://example.org/1.jpg"), can_download("file:///etc/passwd"), can_download("http://")
    (True, False, False)
    """
    try:
        parts = urllib.parse.urlsplit(url)
        return parts.scheme.lower() in ("http", "https") and bool(parts.hostname) and url.isascii() and " " not in url
    except ValueError:
        return False


def downloaded(urls: Sequence[str]) -> Generator[Preparing, None, list[str]]:
    """Downloads what is not in the cache folder yet. Yields its progress, and returns the path of each image's file.

    A file appears under its name only when it is complete. When a download fails, the others are finished first, and
    are kept.

    Args:
      urls: for which `can_download` holds.

    Raises:
      DataError: if a URL cannot be downloaded.
    """
    folder = platformdirs.user_cache_path("ftrain") / "downloads"
    places = [folder / _file_name(url) for url in urls]
    missing = {place: url for place, url in zip(places, urls, strict=True) if not place.is_file()}
    if missing:
        durable.make_folder(folder)
        failures: list[str] = []
        yield Preparing("downloading images", 0, len(missing))
        with ThreadPoolExecutor(AT_ONCE) as threads:
            waiting = {threads.submit(_download, url, place): url for place, url in missing.items()}
            try:
                for done, finished in enumerate(as_completed(waiting), start=1):
                    if cause := finished.result():
                        failures.append(f"{shown(waiting[finished])}: {cause}")
                    yield Preparing("downloading images", done, len(missing))
            finally:
                for each in waiting:
                    each.cancel()
        if failures:
            more = f"; and {len(failures) - NAMED} more" if len(failures) > NAMED else ""
            raise DataError(
                f"cannot download {len(failures)} of {len(missing)} images: {'; '.join(sorted(failures)[:NAMED])}{more}"
                ". Correct the URLs or check the connection, and try again: what has been downloaded is kept"
            )
    return [str(place) for place in places]


def _file_name(url: str) -> str:
    readable_part = re.sub(r"[^A-Za-z0-9._-]", "_", urllib.parse.urlsplit(url).path.rpartition("/")[2])[-40:]
    return f"{hashlib.sha256(url.encode()).hexdigest()[:24]}-{readable_part}"


def _download(url: str, place: Path) -> str | None:
    """Downloads a file. Returns the cause if that fails."""
    try:
        content = _content(url)
        durable.write_file(place, content)
    except (OSError, ValueError, http.client.HTTPException) as error:  # URLError is an OSError
        return shown(str(getattr(error, "reason", None) or error) or type(error).__name__)
    return None


def _content(url: str) -> bytes:
    # Not urlopen, which also opens file:// and ftp://, and follows redirects there.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    request = urllib.request.Request(url, headers={"User-Agent": "ftrain"})
    with opener.open(request, timeout=SILENCE) as response:
        expected = response.headers.get("Content-Length")
        content = bytearray()
        while part := response.read(_CHUNK):
            content += part
            if len(content) > MAX_BYTES:
                raise ValueError(f"it is larger than {readable(MAX_BYTES)}")
        if expected is not None and expected.isdecimal() and len(content) != int(expected):
            raise ValueError(f"the connection ended after {len(content)} of {expected} bytes")
        if not content:
            raise ValueError("it is empty")
    return bytes(content)
