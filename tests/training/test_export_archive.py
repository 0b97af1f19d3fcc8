"""An adapter that a server hands out as an archive."""

import io
import tarfile
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from loopback_server import serving

from sota_ml_researcher.core.errors import BackendError
from sota_ml_researcher.training.export_archive import fetch_archive

CHECKPOINT = "tinker://run/weights/final"
FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": bytes(range(200)) * 50}


def archive(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return made.getvalue()


def answering(body: bytes, *, sends_on_to: str | None = None) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if sends_on_to and self.path.endswith("/archive"):
                self.send_response(302)
                self.send_header("Location", sends_on_to)
                self.end_headers()
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None: ...

    return Handler


@pytest.mark.parametrize("sends_on_to", [None, "/files/a.tar.gz"])
def test_the_two_files_are_taken_out(tmp_path: Path, sends_on_to: str | None) -> None:
    with serving(answering(archive(FILES), sends_on_to=sends_on_to)) as url:
        fetch_archive(url, "key", CHECKPOINT, tmp_path / "out")
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == FILES


def test_another_servers_archive_is_not_fetched(tmp_path: Path) -> None:
    handler = answering(archive(FILES), sends_on_to="http://127.0.0.1:9/a.tar.gz")
    with serving(handler) as url, pytest.raises(BackendError, match="it sends on to http"):
        fetch_archive(url, "key", CHECKPOINT, tmp_path / "out")


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", archive(FILES)[:-200], archive(FILES)[:30]],
    ids=["empty", "page", "end missing", "beginning alone"],
)
def test_what_is_no_whole_archive_is_a_sentence(tmp_path: Path, body: bytes) -> None:
    with serving(answering(body)) as url, pytest.raises(BackendError, match="what came is no archive"):
        fetch_archive(url, "key", CHECKPOINT, tmp_path / "out")
