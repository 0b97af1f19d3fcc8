from importlib.resources import files

import pytest
import yaml

from sota_ml_researcher.core.errors import ConfigError
from sota_ml_researcher.core.yaml_loading import parse_yaml
from sota_ml_researcher.doctrine.rules import Rule, load_rules, load_sources, rule

FOLDER = files("sota_ml_researcher.doctrine")
RULES = list(load_rules().values())
FIELDS = {"claim", "value", "unit", "when", "sources", "confidence", "status", "informational", "note"}

# What the code reads; other parts of the project rely on these being there.
PROMISED = """
lora.capacity.bits_per_parameter lora.data.bits_per_token lora.capacity.margin lora.lr.base lora.lr.over_full
lora.lr.short_run lora.lr.reference_hidden lora.lr.exponent.llama lora.lr.exponent.qwen lora.lr.uncalibrated
lora.alpha lora.apply_to.all lora.rank.default lora.rank.power_of_two lora.rank.rl lora.batch.tolerance
sft.batch.default sft.steps.min sft.loss.completion_only sft.schedule.linear sft.epochs.default adam.betas
adam.eps sft.weight_decay sft.grad_clip sft.eval.cadence sft.checkpoint.cadence data.max_seq_len data.duplicates
data.leakage data.truncation data.min_rows job.seed dpo.beta dpo.lr dpo.schedule dpo.epochs dpo.batch
dpo.loss.start dpo.reference dpo.displacement rl.lr rl.group_size rl.batch rl.loss rl.advantage rl.temperature
rl.clip rl.kl_coef rl.substeps rl.constant_groups rl.entropy_collapse rl.kl_mismatch judge.both_orders
judge.temperature judge.failed_is_missing judge.samples stats.wilson stats.confidence_level stats.clustered
stats.paired stats.power stats.bootstrap stats.noise_floor
""".split()


@pytest.mark.parametrize("name", ["rules.yaml", "sources.yaml"])
def test_the_files_repeat_no_key_and_read_the_same_without_the_c_parser(name: str) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    strict = parse_yaml(text, FOLDER / name).data
    assert strict == yaml.safe_load(text) == yaml.load(text, Loader=yaml.CSafeLoader)


def test_every_rule_has_only_known_fields() -> None:
    rows = yaml.safe_load((FOLDER / "rules.yaml").read_text(encoding="utf-8"))
    assert {rule_id: set(row) - FIELDS for rule_id, row in rows.items() if set(row) - FIELDS} == {}


@pytest.mark.parametrize("each", RULES, ids=lambda each: each.id)
def test_every_rule_has_a_claim_a_source_and_a_confidence(each: Rule) -> None:
    assert each.claim.endswith(".") and "\n" not in each.claim and len(each.claim) < 160
    assert each.confidence in {"high", "medium", "low"}
    assert each.status in {"verified", "secondary", "recalled", "disputed", "chosen"}
    assert isinstance(each.informational, bool)
    assert all(isinstance(text, str) for text in (each.unit, each.when, each.note))
    assert each.source.authors and each.source.title and 1900 < each.source.year < 2027
    assert all(source.link.startswith("https://") for source in each.sources)


@pytest.mark.parametrize("each", [r for r in RULES if r.status == "disputed"], ids=lambda each: each.id)
def test_a_disputed_rule_says_what_is_disputed_and_by_whom(each: Rule) -> None:
    assert len(each.sources) > 1
    assert each.note


def test_what_was_not_confirmed_is_never_called_certain_by_its_status() -> None:
    assert [r.id for r in RULES if r.status == "chosen" and r.confidence == "high" and r.value is not None] == []


def test_only_a_rule_with_a_value_is_marked_informational() -> None:
    assert [r.id for r in RULES if r.informational and r.value is None] == []


def test_every_source_is_cited_by_a_rule_or_a_page() -> None:
    cited = {source.key for each in RULES for source in each.sources}
    pages = "".join(p.read_text(encoding="utf-8") for p in FOLDER.iterdir() if p.name.endswith(".md"))
    assert [key for key in load_sources() if key not in cited and f"][{key}]" not in pages] == []


def test_the_promised_rules_exist() -> None:
    assert [rule_id for rule_id in PROMISED if rule_id not in load_rules()] == []


def test_numbers_that_follow_from_others_do() -> None:
    # ln 2 by its series sum 1 / (k 2^k), k = 1 .. 50
    assert rule("dpo.loss.start").value == pytest.approx(sum(1 / (k * 2**k) for k in range(1, 51)), rel=1e-12)
    low, high = rule("lora.capacity.margin").value
    bits, per_token = rule("lora.capacity.bits_per_parameter").value, rule("lora.data.bits_per_token").value
    # as many parameters as tokens (Tinker's rule) is the upper end; 3.6 bits a parameter do not lift the lower end to 1
    assert bits * rule("lora.capacity.tokens").value / per_token == high
    assert low * 3.6 / bits < 1
    # (1.96 + 0.84) x 0.5 / sqrt(n) + 1 / n = 0.6 - 0.5
    prompts = rule("judge.samples").value
    assert (1.96 + 0.8416) * 0.5 / prompts**0.5 + 1 / prompts == pytest.approx(0.1, abs=2e-4)


def test_a_mistyped_id_suggests_the_near_one() -> None:
    with pytest.raises(ConfigError, match=r"there is no rule 'lora\.lr\.bas'.*Did you mean 'lora\.lr\.base'"):
        rule("lora.lr.bas")
    with pytest.raises(ConfigError, match="doctrine://rules"):
        rule("zzzzzz")


def test_values_cannot_be_changed_by_a_reader() -> None:
    with pytest.raises(TypeError):
        load_rules()["lora.alpha"] = rule("lora.init")  # type: ignore[index]
    with pytest.raises(TypeError):
        rule("rl.grpo_paper").value["batch"] = 1  # type: ignore[index,call-overload]
    assert isinstance(rule("adam.betas").value, tuple)
