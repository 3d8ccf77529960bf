"""Files that are published, downloaded from a server on this machine and from a hub that is made up."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from refiners.conversion import download, hub, optional
from refiners.conversion.utils import Hub, download_file_url

CONTENT = bytes(range(256)) * 9000  # more than one piece
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves /good, /empty, /unsized, /short, which ends too early, and nothing else."""

    requests: list[str]

    def do_GET(self) -> None:
        self.requests.append(self.path)
        if self.path not in ("/good", "/empty", "/short", "/unsized"):
            self.send_error(404)
            return
        body = b"" if self.path == "/empty" else CONTENT
        self.send_response(200)
        if self.path != "/unsized":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:1000] if self.path == "/short" else body)

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def requested() -> list[str]:
    """The paths that were asked for."""
    return []


@pytest.fixture
def url(requested: list[str]) -> Iterator[str]:
    """A server on this machine."""
    handler = type("Handler", (Handler,), {"requests": requested})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def location(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty local folder of weights."""
    monkeypatch.setenv("REFINERS_HUB_PATH", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A Hugging Face Hub with one file."""
    cached = tmp_path / "cache" / "blob"
    cached.parent.mkdir()
    cached.write_bytes(CONTENT)
    fake = SimpleNamespace(etag=SHA256, cached=cached, asked=[])
    fake.hf_hub_url = lambda repo_id, filename, revision: f"https://hub/{repo_id}/{revision}/{filename}"
    fake.get_hf_file_metadata = lambda url: SimpleNamespace(etag=fake.etag, url=url)

    def hf_hub_download(repo_id: str, filename: str, revision: str) -> str:
        fake.asked.append((repo_id, filename, revision))
        return str(cached)

    fake.hf_hub_download = hf_hub_download
    monkeypatch.setattr(hub, "optional", lambda name: {"huggingface_hub": fake}[name])
    return fake


def files_below(path: Path) -> list[str]:
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file() or file.is_symlink())


def test_a_file_is_downloaded_whole(url: str, tmp_path: Path, requested: list[str]) -> None:
    destination = tmp_path / "new" / "folder" / "file.bin"
    download_file_url(f"{url}/good", destination)
    assert destination.read_bytes() == CONTENT
    assert requested == ["/good"]
    assert files_below(tmp_path) == ["new/folder/file.bin"]
    other = tmp_path / "other"
    other.touch()
    assert destination.stat().st_mode == other.stat().st_mode  # not that of a temporary file


@pytest.mark.parametrize(("path", "content"), [("empty", b""), ("unsized", CONTENT)])
def test_sizes_need_not_be_known(url: str, tmp_path: Path, path: str, content: bytes) -> None:
    download_file_url(f"{url}/{path}", tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == content


@pytest.mark.parametrize(("path", "error"), [("absent", "404"), ("short", "IncompleteRead|1000 bytes came")])
def test_a_failed_download_leaves_what_was_there(url: str, tmp_path: Path, path: str, error: str) -> None:
    (tmp_path / "file.bin").write_text("before")
    with pytest.raises(OSError, match=error):  # what requests raises is one
        download_file_url(f"{url}/{path}", tmp_path / "file.bin")
    assert files_below(tmp_path) == ["file.bin"]
    assert (tmp_path / "file.bin").read_text() == "before"


def test_fewer_bytes_than_announced_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Response:
        headers: ClassVar = {"content-length": "10"}

        def __enter__(self) -> "Response":
            return self

        def __exit__(self, *exception: object) -> None: ...
        def raise_for_status(self) -> None: ...
        def iter_content(self, size: int) -> Iterator[bytes]:
            yield b"12345"

    real = optional.optional
    fake = SimpleNamespace(get=lambda *args, **kwargs: Response())
    monkeypatch.setattr(download, "optional", lambda name: fake if name == "requests" else real(name))
    with pytest.raises(OSError, match="5 bytes came, 10 were announced"):
        download_file_url("http://nowhere", tmp_path / "file.bin")
    assert files_below(tmp_path) == []


def test_the_local_folder_is_that_of_the_environment(location: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Hub("owner/name", "sub/model.safetensors")
    assert entry.local_path == location / "owner/name/sub/model.safetensors"
    monkeypatch.delenv("REFINERS_HUB_PATH")
    assert Hub.hub_location() == Path("tests/weights")


def test_a_url_is_downloaded_once(
    url: str, location: Path, requested: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    entry = Hub("owner/name", "file.bin", expected_sha256=SHA256.upper(), download_url=f"{url}/good")
    entry.download()
    assert entry.local_path.read_bytes() == CONTENT
    assert entry.local_sha256_hash == SHA256
    assert entry.check_local_hash()
    assert not caplog.records
    entry.download()
    assert "already exists" in caplog.text
    assert requested == ["/good"]
    assert files_below(location) == ["owner/name/file.bin"]


def test_a_file_with_another_hash_is_not_put_in_place(url: str, location: Path) -> None:
    entry = Hub("owner/name", "file.bin", expected_sha256="0" * 64, download_url=f"{url}/good")
    with pytest.raises(AssertionError, match=f"{SHA256}, expected 0000"):
        entry.download()
    assert files_below(location) == []


def test_a_file_of_the_hub_is_a_link_into_its_cache(fake_hub: SimpleNamespace) -> None:
    entry = Hub("owner/name", "sub/file.bin", revision="abc", expected_sha256=SHA256)
    entry.local_path.parent.mkdir(parents=True)
    entry.local_path.symlink_to("gone")  # a link whose file was deleted is replaced
    entry.download()
    assert entry.local_path.is_symlink()
    assert entry.local_path.resolve() == fake_hub.cached
    assert fake_hub.asked == [("owner/name", "sub/file.bin", "abc")]
    assert entry.hf_url == "https://hub/owner/name/abc/sub/file.bin"
    assert entry.hf_metadata.url == entry.hf_url


def test_a_wrong_file_of_the_hub_is_not_linked(fake_hub: SimpleNamespace, location: Path) -> None:
    with pytest.raises(AssertionError, match="expected 1111"):
        Hub("owner/name", "file.bin", expected_sha256="1" * 64).download()
    assert not location.exists()


def test_where_links_cannot_be_made_the_file_is_copied(
    fake_hub: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError("not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    entry = Hub("owner/name", "file.bin", expected_sha256=SHA256)
    entry.download()
    assert not entry.local_path.is_symlink()
    assert entry.local_path.read_bytes() == CONTENT


@pytest.mark.parametrize("etag", [SHA256, f'"{SHA256}"', f'W/"{SHA256.upper()}"'])
def test_the_remote_hash_is_the_etag(fake_hub: SimpleNamespace, etag: str) -> None:
    fake_hub.etag = etag
    entry = Hub("owner/name", "file.bin", expected_sha256=SHA256)
    assert entry.hf_sha256_hash == SHA256
    assert entry.check_remote_hash()


@pytest.mark.parametrize("etag", [None, "", "abc", "0" * 40, "g" * 64])
def test_an_etag_that_is_no_hash_is_refused(fake_hub: SimpleNamespace, etag: str | None) -> None:
    fake_hub.etag = etag
    with pytest.raises(ValueError, match="must be 64 hexadecimal digits"):
        _ = Hub("owner/name", "file.bin").hf_sha256_hash


def test_another_hash_is_a_warning(fake_hub: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    entry = Hub("owner/name", "file.bin", expected_sha256="0" * 64)
    assert not entry.check_remote_hash()
    assert f"the remote hash is {SHA256}, expected {'0' * 64}" in caplog.text
    entry.local_path.parent.mkdir(parents=True)
    entry.local_path.write_bytes(CONTENT)
    assert not entry.check_local_hash()
    assert f"the local hash is {SHA256}" in caplog.text


def test_without_an_expected_hash_nothing_is_computed(caplog: pytest.LogCaptureFixture) -> None:
    entry = Hub("owner/name", "file.bin")
    assert entry.check_local_hash() and entry.check_remote_hash()
    assert caplog.text.count("no hash is expected") == 2


@pytest.mark.parametrize("attribute", ["hf_url", "hf_cache_path", "hf_metadata", "hf_sha256_hash"])
def test_what_is_not_on_the_hub_says_so(attribute: str) -> None:
    entry: Any = Hub("owner/name", "file.bin", download_url="http://elsewhere")
    with pytest.raises(AssertionError, match="owner/name/file.bin is not available on the hub"):
        getattr(entry, attribute)


def test_a_file_that_is_absent_has_no_hash() -> None:
    with pytest.raises(AssertionError, match="does not exist"):
        _ = Hub("owner/name", "file.bin").local_sha256_hash


def test_a_missing_package_is_named_with_its_extra() -> None:
    with pytest.raises(ImportError, match=r"absent_package is not installed: pip install 'refiners\[conversion\]'"):
        optional.optional("absent_package")
