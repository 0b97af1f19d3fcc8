from pathlib import Path

import pytest

from sota_ml_researcher.backends.prices import PRICES_VARIABLE, load_prices
from sota_ml_researcher.core.errors import ConfigError


def overridden(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text(text)
    monkeypatch.setenv(PRICES_VARIABLE, str(path))


def test_the_shipped_table_is_dated_and_has_a_cached_price_from_the_discount() -> None:
    table = load_prices()
    price = table.model("tinker", "Qwen/Qwen3-8B")
    assert price is not None
    assert price.train == 0.44
    assert price.cached_prefill == pytest.approx(0.195 * 0.2)  # 80% off
    assert str(price.as_of) == "2026-10-07"
    assert table.source and table.storage("tinker") == 0.10


def test_an_unlisted_model_has_no_price_and_a_variant_is_another_model() -> None:
    table = load_prices()
    assert table.model("tinker", "no/such-model") is None
    assert table.model("tinker", "Qwen/Qwen3-8B:peft:262144") is None


def test_the_own_machine_is_free_until_a_table_says_otherwise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert not load_prices().charges("embedded")
    assert load_prices().charges("tinker")
    overridden(monkeypatch, tmp_path, "backends: {embedded: {models: {demo: {train: 1.0}}}}")
    assert load_prices().charges("embedded")


def test_an_override_changes_what_it_names_and_nothing_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    overridden(monkeypatch, tmp_path, "backends: {tinker: {models: {Qwen/Qwen3-8B: {train: 9.0}}}}")
    price = load_prices().model("tinker", "Qwen/Qwen3-8B")
    assert price is not None
    assert (price.train, price.prefill) == (9.0, 0.195)
    assert load_prices().model("tinker", "openai/gpt-oss-20b") is not None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("backends: {tinker: {models: {a: {train: -1}}}}", "train: .* greater than or equal to 0"),
        ("backends: {tinker: {models: {a: {train: .nan}}}}", "train: .* finite"),
        ("backends: {tinker: {models: {a: {trian: 1}}}}", "trian: Extra inputs"),
        ("backend: {}", "prices.yaml:1: backend"),
        ("backends: [", "prices.yaml"),
    ],
)
def test_a_broken_file_is_named_with_its_key(
    text: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    overridden(monkeypatch, tmp_path, text)
    with pytest.raises(ConfigError, match=message):
        load_prices()


def test_a_missing_override_file_is_an_error_and_not_the_shipped_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(PRICES_VARIABLE, str(tmp_path / "gone.yaml"))
    with pytest.raises(ConfigError, match=r"gone\.yaml"):
        load_prices()
