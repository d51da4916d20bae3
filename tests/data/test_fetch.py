import contextlib
import hashlib
import io
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from noise2next.data import fetch
from noise2next.errors import UserError

NAME = "ml-latest-small"
RATINGS = b"userId,movieId,rating,timestamp\r\n" + b"".join(b"%d,7,4.0,964982703\r\n" % n for n in range(20_000))


def archive(member=f"{NAME}/ratings.csv", content=RATINGS, packing=zipfile.ZIP_STORED):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", packing) as zipped:
        zipped.writestr(member, content)
    return packed.getvalue()


class Publisher(BaseHTTPRequestHandler):
    """Serves `server.files`; `server.breaks_after` bytes it hangs up; `server.ranges` tells whether it can go on."""

    def do_GET(self):
        name = self.path.rsplit("/", 1)[-1]
        wanted = self.headers.get("Range")
        self.server.asked.append((name, wanted))
        if self.server.silent.is_set():
            self.server.released.wait(10)
            return
        if name not in self.server.files:
            self.send_error(404)
            return
        body, start = self.server.files[name], 0
        if wanted and self.server.ranges:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        sent = body[start:]
        if self.server.breaks_after is not None and name.endswith(".zip"):
            sent = sent[: self.server.breaks_after]
        with contextlib.suppress(OSError):
            self.wfile.write(sent)

    def log_message(self, *_):
        pass


@pytest.fixture
def publisher(monkeypatch):
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", fetch.ADDRESS):
        monkeypatch.delenv(proxy, raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Publisher)
    server.asked, server.breaks_after, server.ranges = [], None, True
    server.silent, server.released = threading.Event(), threading.Event()
    server.files = {}
    offer(server, NAME, archive())
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    server.url = f"http://127.0.0.1:{server.server_port}/movielens"
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()
    thread.join()


def offer(server, name, content, md5=None):
    digest = md5 or hashlib.md5(content).hexdigest()
    server.files |= {f"{name}.zip": content, f"{name}.zip.md5": f"MD5 ({name}.zip) = {digest}\n".encode()}


def zips_asked(server):
    return [ranged for name, ranged in server.asked if name.endswith(".zip")]


def test_the_archive_arrives_as_the_publisher_has_it(publisher, tmp_path):
    path = fetch.fetch(NAME, tmp_path / ".cache", publisher.url)
    assert path == tmp_path / ".cache" / f"{NAME}.zip"
    assert path.read_bytes() == publisher.files[f"{NAME}.zip"]


def test_the_licence_is_told_before_a_byte_is_asked_for(publisher, tmp_path):
    told = []
    fetch.fetch(NAME, tmp_path, publisher.url, announce=lambda text: told.append((text, list(publisher.asked))))
    ((text, asked),) = told
    assert asked == []
    assert "research" in text
    assert "redistribute" in text
    assert "Harper" in text


def test_a_sound_copy_is_not_downloaded_again(publisher, tmp_path):
    fetch.fetch(NAME, tmp_path, publisher.url)
    publisher.files.clear()
    fetch.fetch(NAME, tmp_path, publisher.url)
    assert len(zips_asked(publisher)) == 1


def test_a_spoilt_copy_is_downloaded_again(publisher, tmp_path):
    path = fetch.fetch(NAME, tmp_path, publisher.url)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    fetch.fetch(NAME, tmp_path, publisher.url)
    assert path.read_bytes() == publisher.files[f"{NAME}.zip"]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_is_gone_on_with_or_begun_again(publisher, tmp_path, ranges):
    publisher.ranges, publisher.breaks_after = ranges, 300_000
    with pytest.raises(UserError, match="broke after 300,000 of"):
        fetch.fetch(NAME, tmp_path, publisher.url)
    assert not (tmp_path / f"{NAME}.zip").exists()
    publisher.breaks_after = None
    path = fetch.fetch(NAME, tmp_path, publisher.url)
    assert zips_asked(publisher) == [None, "bytes=300000-"]
    assert path.read_bytes() == publisher.files[f"{NAME}.zip"]
    assert not list(tmp_path.glob("*.part"))


def test_a_piece_of_another_edition_is_thrown_away(publisher, tmp_path):
    (tmp_path / f"{NAME}.zip.part").write_bytes(b"older bytes")
    path = fetch.fetch(NAME, tmp_path, publisher.url)
    assert zips_asked(publisher) == ["bytes=11-", None]
    assert path.read_bytes() == publisher.files[f"{NAME}.zip"]


def test_a_piece_that_is_whole_already_is_taken(publisher, tmp_path):
    (tmp_path / f"{NAME}.zip.part").write_bytes(publisher.files[f"{NAME}.zip"])
    assert fetch.fetch(NAME, tmp_path, publisher.url).read_bytes() == publisher.files[f"{NAME}.zip"]


def test_the_environment_may_name_the_server(publisher, tmp_path, monkeypatch):
    monkeypatch.setenv("NOISE2NEXT_MOVIELENS_URL", publisher.url + "/")
    assert fetch.fetch(NAME, tmp_path).is_file()


def spoil_md5(server):
    offer(server, NAME, archive(), md5="0" * 32)


def not_a_zip(server):
    offer(server, NAME, b"<html>Service unavailable</html>")


def no_ratings(server):
    offer(server, NAME, archive(member="else/ratings.csv"))


def other_columns(server):
    offer(server, NAME, archive(content=b"a,b\n1,2\n"))


def damaged_inside(server):
    content = bytearray(archive())
    content[5_000] ^= 0xFF
    offer(server, NAME, bytes(content))


def damaged_and_packed(server):
    content = bytearray(archive(packing=zipfile.ZIP_DEFLATED))
    content[200:400] = b"?" * 200
    offer(server, NAME, bytes(content))


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (spoil_md5, "md5 is .* and the publisher names 0000"),
        (not_a_zip, "not a sound zip archive"),
        (no_ratings, "holds no ml-latest-small/ratings.csv"),
        (other_columns, "does not begin with userId,movieId,rating,timestamp"),
        (damaged_inside, "inside is damaged"),
        (damaged_and_packed, "not a sound zip archive"),
    ],
)
def test_what_is_not_the_published_log_is_refused_and_not_kept(publisher, tmp_path, fault, said):
    fault(publisher)
    with pytest.raises(UserError, match=said) as raised:
        fetch.fetch(NAME, tmp_path, publisher.url)
    assert publisher.url in str(raised.value)
    assert "by hand" in str(raised.value)
    assert not [one for one in tmp_path.iterdir() if ".zip" in one.name]


@pytest.mark.parametrize(("name", "member"), [("ml-100k", "ml-100k/u.data"), ("ml-1m", "ml-1m/ratings.dat")])
def test_a_log_that_never_changes_is_known_by_its_content_even_if_its_md5_agrees(publisher, tmp_path, name, member):
    offer(publisher, name, archive(member, b"1\t2\t3\t881250949\n"))
    with pytest.raises(UserError, match=f"{member} is not the published one"):
        fetch.fetch(name, tmp_path, publisher.url)


def test_the_digest_of_ratings_dat_is_the_one_git_gives(tmp_path):
    """`printf hello | git hash-object --stdin`"""
    (tmp_path / "a.zip").write_bytes(archive("x", b"hello"))
    assert fetch._git_blob_of(tmp_path / "a.zip", "x") == "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0"


def test_without_a_digest_the_changing_log_is_not_downloaded(publisher, tmp_path):
    del publisher.files[f"{NAME}.zip.md5"]
    with pytest.raises(UserError, match=r"ml-latest-small\.zip\.md5: the server answers 404"):
        fetch.fetch(NAME, tmp_path, publisher.url)
    assert zips_asked(publisher) == []


def test_a_server_that_has_it_not_is_named(publisher, tmp_path):
    with pytest.raises(UserError, match=r"ml-1m\.zip: the server answers 404"):
        fetch.fetch("ml-1m", tmp_path, publisher.url)


def test_a_server_that_keeps_silent_is_left(publisher, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "TIMEOUT", 0.2)
    publisher.silent.set()
    with pytest.raises(UserError, match=r"no answer for 0\.2 s|timed out"):
        fetch.fetch(NAME, tmp_path, publisher.url)


def test_without_a_network_the_remedy_is_told(publisher, tmp_path):
    with pytest.raises(UserError, match=r"not reached .* by hand"):
        fetch.fetch(NAME, tmp_path, "http://127.0.0.1:9")


@pytest.mark.parametrize(("name", "url"), [("ml-9g", "http://127.0.0.1:9"), (NAME, "file:///etc")])
def test_unknown_names_and_schemes_are_refused(tmp_path, name, url):
    with pytest.raises(UserError):
        fetch.fetch(name, tmp_path, url)


@pytest.mark.real
def test_the_real_ml_100k_is_recognised(publisher, tmp_path, shared):
    publisher.files["ml-100k.zip"] = (shared / "raw" / "ml-100k.zip").read_bytes()
    path = fetch.fetch("ml-100k", tmp_path, publisher.url)
    assert path.read_bytes() == publisher.files["ml-100k.zip"]


@pytest.mark.real
def test_a_part_of_ml_1m_is_not_taken_for_the_whole(publisher, tmp_path, shared):
    publisher.files["ml-1m.zip"] = (shared / "raw" / "ml-1m_partial.zip").read_bytes()
    with pytest.raises(UserError, match="not the published one"):
        fetch.fetch("ml-1m", tmp_path, publisher.url)
