"""A hub on loopback for a test, with the hub's client of this process pointed at it."""

from collections.abc import Generator
from pathlib import Path

import pytest
from huggingface_hub import constants
from loopback_hub import Hub, HubRepository, gsm8k, json_lines, serving_hub

CHATS = [{"prompt": f"question {n}", "completion": "answer " * 40} for n in range(400)]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Hub]:
    made = Hub({"openai/gsm8k": gsm8k(), "some/chats": HubRepository({"train.jsonl": json_lines(CHATS)})})
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with serving_hub(made) as address:
        for name, value in {  # the client reads its variables once, at import
            "ENDPOINT": address,
            "HUGGINGFACE_CO_URL_TEMPLATE": address + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "hf"),
            "HF_TOKEN_PATH": str(tmp_path / "no-token"),
            "HF_HUB_OFFLINE": False,
        }.items():
            monkeypatch.setattr(constants, name, value)
        yield made
