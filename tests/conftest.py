from pathlib import Path

import pytest
from conftest_tiny import write_tiny_model


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
