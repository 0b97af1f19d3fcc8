import io
import logging

import pytest

from sota_ml_researcher.core import redaction
from sota_ml_researcher.core.redaction import REMOVED, keep_secret, redact_logs, redacted


@pytest.mark.parametrize(
    "key",
    [
        "tml-AbCdEfGhIjKlMnOp",
        "sk-ant-api03-" + "0123456789abcdef",
        "sk-proj-0123456789abcdef",
        "hf_AbCdEfGhIjKlMnOpQrSt",
        "ghp_0123456789abcdef01234",
        "AKIAABCDEFGHIJKLMNOP",
    ],
)
def test_what_has_the_shape_of_a_key_is_removed(key: str) -> None:
    assert redacted(f"refused: {key}.") == f"refused: {REMOVED}."


def test_keys_in_headers_and_addresses_are_removed() -> None:
    assert redacted("Authorization: Bearer abcdefghijklmnop") == f"Authorization: Bearer {REMOVED}"
    assert redacted("https://me:hunter22@host/x") == f"https://{REMOVED}@host/x"


@pytest.mark.parametrize("name", ["TINKER_API_KEY", "ML_RESEARCHER_CLUSTER_KEY", "HF_TOKEN", "DB_PASSWORD", "apikey"])
def test_the_values_of_secret_variables_are_removed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "correct horse 1")
    assert redacted("it said correct horse 1!") == f"it said {REMOVED}!"


def test_ordinary_words_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHORT_KEY", "yes")
    monkeypatch.setenv("HOME_PATH", "/some/long/path")
    text = "yes: /some/long/path, tml-local, sk-learn, tokens 12345678, http://127.0.0.1:8765/mcp, a@b.org"
    assert redacted(text) == text


def test_a_key_of_a_file_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_known", set())
    keep_secret("of-a-file-123")
    assert redacted("of-a-file-123") == REMOVED


def test_no_log_line_and_no_traceback_holds_a_key() -> None:
    root, stream = logging.getLogger(), io.StringIO()
    handler = logging.StreamHandler(stream)
    root.addHandler(handler)
    try:
        redact_logs()
        try:
            raise ValueError("tml-AbCdEfGhIjKlMnOp")
        except ValueError:
            logging.getLogger("x").exception("the key %s is wrong", "tml-AbCdEfGhIjKlMnOp")
    finally:
        root.removeHandler(handler)
    assert "Traceback" in stream.getvalue()
    assert "tml-AbC" not in stream.getvalue()
