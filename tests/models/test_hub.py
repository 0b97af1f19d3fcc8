"""A Hugging Face hub that is out of reach: it is noticed once, and nothing is asked again and again."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Generator

import pytest

SCRIPT = """
from sota_ml_researcher.core.errors import ModelError
from sota_ml_researcher.models.hub import hub_file, tokenizer_folder
from sota_ml_researcher.models.renderers import load_renderer
for refused in (lambda: hub_file("some/model", "config.json"), lambda: tokenizer_folder("some/model"),
                lambda: load_renderer("Qwen/Qwen3-8B")):
    try:
        refused()
    except ModelError as error:
        print(error)
"""


@pytest.fixture
def silent_hub() -> Generator[tuple[str, list[int]]]:
    """A server that hangs up on everybody: its address, and one entry per connection."""
    connections: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                connections.append(1)
                connection.close()

        threading.Thread(target=hang_up, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", connections
        listener.shutdown(socket.SHUT_RDWR)


def test_an_unreachable_hub_is_asked_once(
    silent_hub: tuple[str, list[int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    address, connections = silent_hub
    environment = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path_factory.mktemp("hub"))}
    environment.pop("HF_HUB_OFFLINE")
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.count("the Hugging Face hub is out of reach") == 3, done.stdout
    assert len(connections) == 1
    assert "Retrying" not in done.stderr
