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

from ftrain.data import download, from_table
from ftrain.data.download import downloaded
from ftrain.errors import DataError
from ftrain.run.locate import to_end


def png(red: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8), (red, 0, 0)).save(content, "PNG")
    return content.getvalue()


class Server(BaseHTTPRequestHandler):
    """Images by their names, and some that go wrong."""

    asked: ClassVar[Counter[str]] = Counter()

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
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
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
    assert [(each.what, each.done, each.total) for each in downloaded(urls)] == [
        ("downloading images", done, 3) for done in range(4)
    ]
    assert list(downloaded(urls)) == []


def test_what_cannot_be_downloaded_is_named_and_the_rest_is_kept(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "MAX_BYTES", 5)
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
