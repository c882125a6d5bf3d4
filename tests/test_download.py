import hashlib
import http.server
import threading

import pytest

from pipeline.sources.download import download

CONTENT = bytes(range(256)) * 2000
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture
def server():
    """A file server that knows ranges; ``breaks`` is how many bytes it sends before it hangs up, once."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            state = self.server
            wanted = self.headers.get("Range")
            state.ranges.append(wanted)
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and state.knows_ranges else 0
            if start >= len(CONTENT):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(CONTENT) - start))
            self.end_headers()
            body = CONTENT[start:]
            if state.breaks:
                body, state.breaks = body[: state.breaks], 0
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as served:
        served.ranges, served.breaks, served.knows_ranges = [], 0, True
        thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield served
        served.shutdown()
        thread.join()


def address(server):
    return f"http://127.0.0.1:{server.server_port}/set.zip"


def test_a_file_is_fetched_once(server, tmp_path):
    assert download(address(server), MD5, tmp_path / "kept").read_bytes() == CONTENT
    assert download(address(server), MD5, tmp_path / "kept").read_bytes() == CONTENT
    assert server.ranges == [None]
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["set.zip"]


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_broken_download_resumes(server, tmp_path, knows_ranges):
    server.breaks, server.knows_ranges = 100_000, knows_ranges
    with pytest.raises(ValueError, match=r"broke at 100,000 of 512,000 bytes; run again to continue"):
        download(address(server), MD5, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["set.zip.part"]
    assert download(address(server), MD5, tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-"]
    assert [path.name for path in tmp_path.iterdir()] == ["set.zip"]


def test_a_whole_part_file_needs_no_more_bytes(server, tmp_path):
    (tmp_path / "set.zip.part").write_bytes(CONTENT)
    assert download(address(server), MD5, tmp_path).read_bytes() == CONTENT


def test_a_wrong_checksum_keeps_nothing(server, tmp_path):
    with pytest.raises(ValueError, match=rf"md5 is {MD5}, however expected {'0' * 32}; run again"):
        download(address(server), "0" * 32, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_server_is_told_with_the_way_round(tmp_path):
    with pytest.raises(ValueError, match=r"or download it yourself and put it at .*set.zip"):
        download("http://127.0.0.1:9/set.zip", MD5, tmp_path)
