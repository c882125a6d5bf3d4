import hashlib
import http.server
import threading

import pytest

from pipeline.sources.download import download

CONTENT = bytes(range(256)) * 2000
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture
def server():
    """A file server; ``breaks`` is how many bytes it sends before it hangs up, once."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            state = self.server
            state.requests += 1
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            body, state.breaks = CONTENT[: state.breaks], None
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as served:
        served.requests, served.breaks = 0, None
        thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield served
        served.shutdown()
        thread.join()


def address(server):
    return f"http://127.0.0.1:{server.server_port}/set.zip"


def test_a_file_is_fetched_once(server, tmp_path):
    for _ in range(2):
        assert download(address(server), MD5, tmp_path / "kept") == tmp_path / "kept" / "set.zip"
    assert (tmp_path / "kept" / "set.zip").read_bytes() == CONTENT
    assert server.requests == 1
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["set.zip"]


def test_a_file_with_another_checksum_is_fetched_again(server, tmp_path):
    (tmp_path / "set.zip").write_bytes(CONTENT[:-1])
    assert download(address(server), MD5, tmp_path).read_bytes() == CONTENT


def test_a_broken_download_leaves_nothing_and_the_next_run_fetches_the_file(server, tmp_path):
    server.breaks = 100_000
    with pytest.raises(ValueError, match=r"set.zip cannot be downloaded \(.*\); run again, or download it by hand"):
        download(address(server), MD5, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert download(address(server), MD5, tmp_path).read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_nothing(server, tmp_path):
    with pytest.raises(ValueError, match=rf"set.zip cannot be downloaded \(MD5 .* expected md5:{'0' * 32} but got"):
        download(address(server), "0" * 32, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_error_without_a_server_is_one_line_and_says_what_to_do_by_hand(tmp_path):
    with pytest.raises(ValueError, match=r"cannot be downloaded .*put it into the folder that dataset.path") as error:
        download("http://127.0.0.1:9/set.zip", MD5, tmp_path)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []
