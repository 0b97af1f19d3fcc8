"""Models that the platform has retired: the service is asked first, and the table knows what replaces them."""

import json
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler
from types import SimpleNamespace
from typing import Any, cast

import pytest
from loopback_server import serving

from sota_ml_researcher.core.errors import ModelError
from sota_ml_researcher.tools.models import list_models
from sota_ml_researcher.tools.plan_gate import require_models
from sota_ml_researcher.training.plan import backend_warnings

RETIRED, SERVED = "Qwen/Qwen3.5-27B", "moonshotai/Kimi-K2.5"


@pytest.fixture
def platform(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """Serves one model that the table says is retired, and nothing else."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            payload = json.dumps({"supported_models": [{"model_name": SERVED, "max_context_length": 999}]}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, format: str, *args: Any) -> None: ...

    with serving(Handler) as url:
        monkeypatch.setenv("TINKER_API_KEY", "tml-key-of-a-test")
        monkeypatch.setenv("TINKER_BASE_URL", url)
        yield


@pytest.mark.usefixtures("platform")
def test_a_model_that_is_gone_is_refused_with_its_replacement() -> None:
    with pytest.raises(ModelError, match=rf"Tinker retired {RETIRED} on 2026-06-12: take Qwen/Qwen3.6-27B instead"):
        require_models("tinker", None, trains=[RETIRED])


@pytest.mark.usefixtures("platform")
def test_what_the_service_serves_is_not_called_retired() -> None:
    require_models("tinker", None, trains=[SERVED])
    content = list_models(backend="tinker").structured_content
    assert content is not None
    assert content["source"] == "the live service"
    assert [(line["name"], line["context_length"], line["retired"]) for line in content["models"]] == [
        (SERVED, 999, None)
    ]


def test_every_plan_on_hosted_tinker_warns_of_a_retired_model_and_no_other_plan_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sota_ml_researcher.training.plan.differences", lambda _config: [])  # asks no cluster

    def warnings(backend: str, base_model: str) -> list[str]:
        return backend_warnings(cast("Any", SimpleNamespace(backend=backend, base_model=base_model, base_url=None)))

    assert warnings("tinker", RETIRED) == [f"Tinker retired {RETIRED} on 2026-06-12: take Qwen/Qwen3.6-27B instead"]
    assert warnings("tinker", "Qwen/Qwen3-8B") == []
    assert warnings("cluster", RETIRED) == []
