import os
from collections.abc import Generator
from pathlib import Path

# Read once, at the first import of huggingface_hub, which test files import: a fixture would come too late.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
from embedded_engine import end_engine
from failure_output import shorten_sections
from hub_fixture import hub as hub
from judges_fixture import judges as judges
from tiny_models import write_tiny_model, write_tiny_weights


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    report.sections = shorten_sections(report.sections)
    return report


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test gets a state folder of its own, and none of the machine's keys or addresses."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("ML_RESEARCHER_HOME", str(home))
    monkeypatch.setenv("ML_RESEARCHER_PRICES_URL", "off")
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
    """The test's jobs start an engine of their own, which ends with the test."""
    yield
    end_engine(own_home / "engine")


@pytest.fixture(scope="session")
def engine_home(tmp_path_factory: pytest.TempPathFactory) -> Generator[Path]:
    folder = tmp_path_factory.mktemp("engine")
    yield folder
    end_engine(folder)


@pytest.fixture
def shared_engine(own_home: Path, engine_home: Path) -> None:
    """The test's jobs run on one engine for all tests of this process; the first job starts it."""
    (own_home / "engine").symlink_to(engine_home, target_is_directory=True)
