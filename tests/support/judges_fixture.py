"""Judges on loopback."""

from collections.abc import Iterator

import pytest
from loopback_judges import KEY, Judges, serving


@pytest.fixture
def judges(monkeypatch: pytest.MonkeyPatch) -> Iterator[Judges]:
    """Judges behind a port, with the environment pointing to them."""
    found = Judges()
    with serving(found) as url:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_BASE_URL", f"{url}/openai")
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        yield found
