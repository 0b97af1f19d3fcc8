import json
import os
import signal
from collections.abc import Generator
from pathlib import Path

import pytest
from judges_fixture import judges as judges
from tiny_models import write_tiny_model, write_tiny_weights


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test gets a state folder of its own, and none of the machine's keys or addresses."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("ML_RESEARCHER_HOME", str(home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("TINKER_API_KEY", "TINKER_BASE_URL", "ML_RESEARCHER_CLUSTER_KEY"):
        monkeypatch.delenv(name, raising=False)
    return home


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def stop_engine(own_home: Path) -> Generator[None]:
    """Ends the engine that a test's jobs started."""
    yield
    discovery = own_home / "engine" / "engine.json"
    if discovery.exists():
        os.kill(json.loads(discovery.read_bytes())["pid"], signal.SIGTERM)
