"""Images at URLs, from a server on this machine."""

from __future__ import annotations

import io
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import platformdirs
import pytest
from PIL import Image

from ftrain.data import fetch, from_table
from ftrain.data.download import _announced, downloaded
from ftrain.errors import DataError
from ftrain.run.locate import to_end


def png(red: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8), (red, 0, 0)).save(content, "PNG")
    return content.getvalue()


class Server(BaseHTTPRequestHandler):
    """Images by their names, and some that go wrong."""

    asked: ClassVar[Counter[str]] = Counter()
    reached: ClassVar[threading.Event]
    release: ClassVar[threading.Event]

    def do_GET(self) -> None:
        self.asked[self.path] += 1
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", "/1.png" if self.path == "/moved" else "file:///etc/passwd")
            self.end_headers()
        elif self.path == "/short":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"half")
        elif self.path.startswith("/drips"):  # in the middle of the headers or of the content
            self.send_response(200)
            if self.path == "/drips":
                self.end_headers()
                self.wfile.write(b"P")
            else:
                self.flush_headers()
            self.reached.set()
            self.release.wait(60.0)
        elif self.path == "/page":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>Please log in</html>")
        elif self.path == "/empty":
            self.send_response(200)
            self.end_headers()
        elif self.path.startswith("/missing"):
            self.send_error(404)
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(png(int(self.path[1:2])))

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda _: tmp_path / "cache")
    monkeypatch.setenv("no_proxy", "*")
    Server.asked.clear()
    Server.reached, Server.release = threading.Event(), threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    Server.release.set()
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_image_is_downloaded_once(url: str, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text(f"URL,label\n{url}/1.png,x\n{url}/2.png?size=8,y\n{url}/moved,x\n")
    index = from_table(table)
    assert index.paths == (f"{url}/1.png", f"{url}/2.png?size=8", f"{url}/moved")
    with index.open(1) as image:
        assert image.getpixel((0, 0)) == (2, 0, 0)
    assert Path(index.image_name(1)).parent == tmp_path / "cache" / "downloads"
    assert Path(index.image_name(1)).name.endswith("-2.png")
    assert sorted(Server.asked.items()) == [("/1.png", 2), ("/2.png?size=8", 1), ("/moved", 1)]
    assert from_table(table).fingerprint == index.fingerprint
    assert sum(Server.asked.values()) == 4
    assert list((tmp_path / "cache" / "downloads").glob(".*")) == []


def test_progress_is_reported(url: str) -> None:
    urls = [f"{url}/{number}.png" for number in range(3)]
    events = list(downloaded(urls))
    assert events[0] == ("downloading images", 0, 3, "downloading 3 images from 1 host: 127.0.0.1")
    assert {each.done for each in events} <= {0, 1, 2, 3}
    assert events[-1] == ("downloading images", 3, 3, "")
    assert list(downloaded(urls)) == []


def test_what_cannot_be_downloaded_is_named_and_the_rest_is_kept(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "MAX_BYTES", 5)
    names = ("3.png", "empty", "missing", "moved-to-a-file", "short")
    with pytest.raises(DataError) as caught:
        to_end(downloaded([f"{url}/{name}" for name in names]))
    assert str(caught.value).replace(url, "URL") == (
        "cannot download 5 of 5 images: URL/3.png: it is larger than 5 bytes; URL/empty: it is empty; URL/missing: Not "
        "Found; and 2 more. Correct the URLs or check the connection, and try again: what has been downloaded is kept"
    )
    monkeypatch.undo()
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda _: tmp_path / "cache")
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(DataError) as caught:
        to_end(downloaded([f"{url}/{name}" for name in names]))
    text = str(caught.value).replace(url, "URL")
    assert text.startswith("cannot download 4 of 5 images: URL/empty: it is empty; URL/missing: Not Found; URL/moved-")
    assert "root:" not in text
    assert len(list((tmp_path / "cache" / "downloads").iterdir())) == 1


def test_a_connection_that_ends_early_is_an_error(url: str) -> None:
    with pytest.raises(DataError, match="the connection ended after 4 of 1000 bytes"):
        to_end(downloaded([f"{url}/short"]))
    with pytest.raises(DataError, match="cannot download 1 of 1 images"):
        to_end(downloaded([f"{url}/moved-to-a-file"]))


@pytest.mark.parametrize("name", ["drips", "drips-headers"])
def test_a_server_that_drips_is_left(url: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing the work, as Ctrl-C does, ends a download that waits; so does its deadline. Otherwise this would take
    until the server gives up, and `release` would not be what it waits for."""
    work = downloaded([f"{url}/{name}"])
    next(work)
    next(work)
    assert Server.reached.wait(60.0)
    work.close()
    monkeypatch.setattr(fetch, "LONGEST", 0.01)
    with pytest.raises(DataError, match=rf"/{name}: it took longer than 0\.01 s"):
        to_end(downloaded([f"{url}/{name}"]))
    assert not Server.release.is_set()


def test_what_is_no_image_is_not_kept(url: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        to_end(downloaded([f"{url}/page"]))
    assert (
        str(caught.value)
        .replace(url, "URL")
        .startswith(
            "cannot download 1 of 1 images: URL/page: it is not an image that can be read; it begins with '<html>"
            "Please log in<'. Correct the URLs"
        )
    )
    assert list((tmp_path / "cache" / "downloads").iterdir()) == []


def test_a_public_server_cannot_redirect_into_this_network(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([True, False])  # the address of the first server, and that of the second
    monkeypatch.setattr(fetch, "is_public", lambda _: next(answers))
    with pytest.raises(DataError, match="it is redirected from a public address to one of this machine or its network"):
        to_end(downloaded([f"{url}/moved"]))
    assert dict(Server.asked) == {"/moved": 1}


def test_hosts_are_named() -> None:
    urls = [f"http://{host}.org/1.png" for host in "dabbc"]
    assert _announced(urls) == "downloading 5 images from 4 hosts: a.org, b.org, c.org, ..."
    assert _announced(urls[:1]) == "downloading 1 image from 1 host: d.org"
