"""A config that cannot be used is refused in one sentence with its place, whatever is wrong with it."""

from pathlib import Path
from typing import Any

import pytest

from sota_ml_researcher.core.errors import ConfigError
from sota_ml_researcher.core.yaml_loading import load_yaml
from sota_ml_researcher.evals.benchmark.benchmark_config import load_benchmark_settings
from sota_ml_researcher.training.rl.config import load_rl_settings
from sota_ml_researcher.training.sft.config import load_sft_settings

SFT = "base_model: demo\ntrain_file: demo:sft_train\n"
RL = "base_model: demo\ntrain_file: demo:say_train\nnum_steps: 5\n"


def refusal(load: Any, path: Path, text: str) -> str:
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path, None)
    message = str(caught.value)
    assert len(message) < 1000
    assert "\n" not in message
    for word in ("datetime", "instance of", "tuple", "dict", "NoneType", "None", "Traceback", "valid string"):
        assert word not in message
    return message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "run_name: 2024-01-05",
            'run_name: text is needed, got 2024-01-05. To YAML this is a date: put it in quotes, "2024-01-05"',
        ),
        ("run_name: 5", 'text is needed, got 5. To YAML this is a number: put it in quotes, "5".'),
        ("run_name: yes", "text is needed, got true."),
        ("base_model_x: 1", "c.yaml:3: base_model_x: unknown key."),
        ("num_epochs: 0.5", "num_epochs counts whole passes over the data, got 0.5: for a part of one use num_steps"),
        ("num_epochs: many", "c.yaml:3: num_epochs: a whole number is needed, got 'many'"),
        ("learning_rate: [1, 2]", "c.yaml:3: learning_rate: a number is needed, got [1, 2]"),
        ("apply_to: attn", "c.yaml:3: apply_to: a list is needed, got 'attn'"),
        ("apply_to: []", "c.yaml:3: apply_to: at least 1 entries are needed, got []"),
        ("skip_bad_rows: maybe", "c.yaml:3: skip_bad_rows: true or false is needed, got 'maybe'"),
        (
            "batch_size: null\nlora_rank: {a: 1}",
            "c.yaml:4: lora_rank: a whole number is needed, got a mapping of 1 keys",
        ),
        (f"seed: 1{'0' * 5000}", "c.yaml:3: '1000"),
        ("run_name: 2024-13-45", "c.yaml:3: '2024-13-45' is no value of the kind that YAML takes it for"),
        ("run_name: !!int word", "c.yaml:3: 'word' is no value"),
        ('run_name: "a\\0b"', "a text holds a NUL character: 'a\\x00b'"),
        ("run_name: a\x01b", "c.yaml:3: the character \\x01 cannot stand in YAML"),
        (f"run_name: {'[' * 3000}", "c.yaml: it is nested too deeply"),
        (f"run_name: {'[' * 60}{']' * 60}", "c.yaml: it is nested more than 50 levels deep"),
        ("run_name: &a [*a]", "c.yaml: it is nested more than 50 levels deep"),
    ],
)
def test_a_wrong_line_is_named_in_plain_words(tmp_path: Path, line: str, message: str) -> None:
    assert message in refusal(load_sft_settings, tmp_path / "c.yaml", f"{SFT}{line}\n")


@pytest.mark.parametrize("levels", [7, 30])
@pytest.mark.parametrize("merge", [False, True])
def test_aliases_of_aliases_are_counted_before_they_are_written_out(tmp_path: Path, levels: int, merge: bool) -> None:
    form = "{{<<: [{}], k{}: 1}}" if merge else "[{}]"
    lines = ["a0: &a0 {k: 1}" if merge else "a0: &a0 [x]"]
    lines += [f"a{n}: &a{n} " + form.format(", ".join([f"*a{n - 1}"] * 10), n) for n in range(1, levels)]
    assert "more than 100,000 values" in refusal(load_sft_settings, tmp_path / "c.yaml", "\n".join(lines) + "\n")


def test_a_large_value_is_not_repeated(tmp_path: Path) -> None:
    text = f"{SFT}lora_rank: {list(range(9000))}\n"
    assert "lora_rank: a whole number is needed, got a list of 9,000" in refusal(
        load_sft_settings, tmp_path / "c.yaml", text
    )


def test_a_file_of_megabytes_is_refused(tmp_path: Path) -> None:
    assert "more than 1,000,000 bytes" in refusal(load_sft_settings, tmp_path / "c.yaml", f"a: {'x' * 1_100_000}\n")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "rewards: [exact, length]",
            "rewards[1]: reward length needs target_tokens; as an entry of rewards: {type: length, target_tokens: 200}",
        ),
        ("rewards: {exact: 1.0, format: 0.1}", "rewards: [{type: exact, weight: 1}, {type: format, weight: 0.1}]"),
        (
            "rewards: mahts",
            "it is a list of checks: write rewards: [{type: math, weight: 1}, {type: format, weight: 0.1}]",
        ),
        ("rewards: 3", "rewards: [{type: math, weight: 1}, {type: format, weight: 0.1}]"),
        (
            "reward_type: [exact, format]",
            "reward_type: it is one check; for several write, in its place, rewards: [{type: exact, weight: 1}, "
            "{type: format, weight: 0.1}]",
        ),
        ("rewards: []", "c.yaml:4: rewards: it is a list of checks: write rewards: [{type: math"),
        ("rewards: [{type: exact, wieght: 2}]", "c.yaml:4: rewards[0][wieght]: unknown key. Did you mean 'weight'?"),
        (
            "rewards: [{weight: 2}]",
            "c.yaml:4: rewards[0]: an entry is the name of a check, or a mapping such as {type: math, weight: 1}",
        ),
        ("rewards: [{type: exakt}]", "Did you mean 'exact'?"),
        ("reward_type: exact\nclip_ratio: [a, b]", "c.yaml:5: clip_ratio"),
        (
            "reward_type: exact\nclip_ratio: wide",
            "c.yaml:5: clip_ratio: a number is needed or a list is needed, got 'wide'",
        ),
        ("reward_type: exact\nenvironment: {type: retry, turns: 3}", "environment[turns]: unknown key. Did you mean"),
    ],
)
def test_rewards_in_another_form_are_shown_as_they_are_written(tmp_path: Path, line: str, message: str) -> None:
    assert message in refusal(load_rl_settings, tmp_path / "c.yaml", f"{RL}{line}\n")


def test_the_shown_form_of_a_reward_works(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"{RL}rewards: [{{type: exact}}, {{type: length, target_tokens: 64}}]\n")
    assert [part.type for part in load_rl_settings(path, None).config.parts()] == ["exact", "length"]


def test_json_is_a_config_too(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text('{\n\t"base_model": "demo",\n\t"train_file": "demo:sft_train"\n}')
    assert load_sft_settings(path, None).config.base_model == "demo"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"base_model": "demo",\n "base_model": "x"}', "the key 'base_model' is given twice"),
        ('{"base_model": "demo",\n}', "c.json:2: not valid JSON"),
        ('{"a": ' + "[" * 100_000, "c.json: it is nested too deeply"),
        ('{"a": 1' + "0" * 5000 + "}", "a number has too many digits"),
        ("[1]", "the file must hold 'key: value' lines"),
        ('{"a": "\\ud800"}', "half of a surrogate pair: '\\ud800'"),
    ],
)
def test_broken_json_is_refused_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    assert message in refusal(load_sft_settings, tmp_path / "c.json", text)


def test_overrides_are_bounded_too() -> None:
    deep: Any = 1
    for _ in range(60):
        deep = [deep]
    for overrides, message in (({"run_name": deep}, "nested more than 50"), ({"run_name": "a\0"}, "NUL")):
        with pytest.raises(ConfigError, match=message):
            load_sft_settings(None, overrides)


@pytest.mark.parametrize("name", ["", "/dev/zero", "/dev/null"])
def test_what_is_no_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError):
        load_yaml(tmp_path / name)


def test_the_earlier_name_of_a_benchmarks_model_is_understood(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("task: demo:sft_test\nmodel: a/b\nscorer: exact\n")
    assert load_benchmark_settings(tmp_path / "c.yaml", None).config.finetuned_model == "a/b"
    assert load_benchmark_settings(tmp_path / "c.yaml", {"model": "c/d"}).config.finetuned_model == "c/d"
    assert load_benchmark_settings(tmp_path / "c.yaml", {"finetuned_model": "c/d"}).config.finetuned_model == "c/d"
    with pytest.raises(ConfigError, match="model is the earlier name of finetuned_model, and both are given"):
        load_benchmark_settings(tmp_path / "c.yaml", {"model": "c/d", "finetuned_model": "e/f"})
