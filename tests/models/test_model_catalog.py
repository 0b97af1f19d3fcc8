"""The shipped tables against the packages they were made from."""

import importlib.util
from datetime import date
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from tinker_cookbook import hyperparam_utils, model_info

from sota_ml_researcher.models.model_catalog import base_name, catalog_entry, load_catalog, retirement_note

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_model_catalog", ROOT / "scripts" / "make_model_catalog.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_shipped_files_are_what_the_generator_writes_today(generator: ModuleType) -> None:
    shipped = generator.CATALOG.read_text(encoding="utf-8")
    assert generator.render_catalog(yaml.safe_load(shipped)["as_of"]) == shipped
    assert generator.render_defaults() == generator.DEFAULTS.read_text(encoding="utf-8")


def test_the_catalog_equals_the_cookbooks_tables() -> None:
    counts = hyperparam_utils._LORA_PARAMS_PER_RANK_BY_COMPONENT
    ours = {entry.name: entry for entry in load_catalog().models}
    assert set(counts) <= set(ours)
    for name, entry in ours.items():
        assert (entry.lora_per_rank.model_dump() if entry.lora_per_rank else None) == counts.get(name)
        assert list(entry.renderers) == model_info.get_recommended_renderer_names(name)
        assert entry.hidden_size == hyperparam_utils._get_hidden_size(name)
        assert (entry.size, entry.chat) == (
            model_info.get_model_attributes(name).size_str,
            model_info.get_model_attributes(name).is_chat,
        )


def test_the_catalog_says_when_and_from_what_it_was_made() -> None:
    catalog = load_catalog()
    assert catalog.source.startswith("tinker-cookbook ")
    assert catalog.as_of >= date(2026, 11, 24)
    assert all(entry.price is None for entry in catalog.models)


def test_every_fact_kept_by_hand_is_about_a_model_of_the_catalog_and_only_once() -> None:
    facts = yaml.safe_load((ROOT / "models" / "model_facts.yaml").read_text(encoding="utf-8"))
    known = {entry.name for entry in load_catalog().models}
    for groups in facts.values():
        names = [name for group in groups for name in group["models"]]
        assert len(names) == len(set(names))
        assert set(names) <= known
    assert all(group["source"] for key in ("retirements", "contexts") for group in facts[key])


def test_retirements_carry_their_day() -> None:
    retired = {entry.name: entry.retired for entry in load_catalog().models if entry.retired}
    assert len(retired) == 20
    assert retired["meta-llama/Llama-3.1-8B-Instruct"] == date(2026, 6, 12)
    assert retired["moonshotai/Kimi-K2.5"] == date(2026, 7, 12)
    assert "Qwen/Qwen3-8B" not in retired


def test_a_variant_suffix_is_ignored() -> None:
    assert base_name("thinkingmachines/Inkling:peft:262144") == "thinkingmachines/Inkling"
    assert catalog_entry("thinkingmachines/Inkling:peft:262144") == catalog_entry("thinkingmachines/Inkling")
    assert catalog_entry("org/unknown") is None


def test_a_retirement_names_its_day_and_what_to_take_instead() -> None:
    said = retirement_note("Qwen/Qwen3.5-27B:peft:262144", date(2026, 6, 11))
    assert said == "Tinker retires Qwen/Qwen3.5-27B on 2026-06-12, in 1 day: take Qwen/Qwen3.6-27B instead"
    said = retirement_note("Qwen/Qwen3.5-27B", date(2026, 6, 12))
    assert said == "Tinker retired Qwen/Qwen3.5-27B on 2026-06-12: take Qwen/Qwen3.6-27B instead"
    assert "a model that list_models shows" in str(retirement_note("Qwen/Qwen3-32B"))
    assert retirement_note("Qwen/Qwen3-8B") is None


def test_no_replacement_is_retired_itself() -> None:
    replacements = {entry.replacement for entry in load_catalog().models if entry.replacement}
    assert all(catalog_entry(name) is not None and retirement_note(name) is None for name in replacements)
