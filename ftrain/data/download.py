"""Images at URLs, each downloaded once to the user's cache folder."""

from __future__ import annotations

import hashlib
import http.client
import re
import urllib.parse
from collections.abc import Collection, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

import platformdirs

from ftrain.data.decode import open_image
from ftrain.data.fetch import Fetch
from ftrain.data.source import Preparing
from ftrain.disk import durable
from ftrain.errors import DataError
from ftrain.text import shown

AT_ONCE = 8
PAUSE = 0.5  # seconds after which progress is yielded even if there is none, so that a user can stop
NAMED = 3  # failures, and hosts, that are named


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
        yield Preparing("downloading images", 0, len(missing), _announced(missing.values()))
        with ThreadPoolExecutor(AT_ONCE) as threads:
            fetches = {place: Fetch(url) for place, url in missing.items()}
            of = {threads.submit(_download, fetch, place): fetch.url for place, fetch in fetches.items()}
            waiting = set(of)
            try:
                while waiting:
                    finished, waiting = wait(waiting, timeout=PAUSE, return_when=FIRST_COMPLETED)
                    failures += [f"{shown(of[each])}: {cause}" for each in finished if (cause := each.result())]
                    yield Preparing("downloading images", len(missing) - len(waiting), len(missing))
            finally:
                for each in waiting:
                    each.cancel()
                for fetch in fetches.values():
                    fetch.end()
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


def _download(fetch: Fetch, place: Path) -> str | None:
    """Downloads an image. Returns the cause if that fails."""
    try:
        content = fetch.content()
        with durable.new_file(place) as partial:
            durable.write(partial, [content])
            open_image(partial).close()
    except DataError:
        return f"it is not an image that can be read; it begins with {shown(str(content[:20])[1:])}"
    except (OSError, ValueError, http.client.HTTPException) as error:  # URLError is an OSError
        return shown(str(getattr(error, "reason", None) or error) or type(error).__name__)
    return None


def _announced(urls: Collection[str]) -> str:
    """What is downloaded from where, since a table from a stranger can name any server."""
    hosts = sorted({urllib.parse.urlsplit(url).hostname or "" for url in urls})
    images = "1 image" if len(urls) == 1 else f"{len(urls)} images"
    where = "1 host" if len(hosts) == 1 else f"{len(hosts)} hosts"
    return f"downloading {images} from {where}: {', '.join(map(shown, hosts[:NAMED]))}{', ...' * (len(hosts) > NAMED)}"
