from pathlib import Path

import pytest

from sota_ml_researcher.core.errors import ConfigError
from sota_ml_researcher.core.yaml_loading import load_yaml


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "sft.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_values_come_with_the_line_of_their_key(tmp_path: Path) -> None:
    document = load_yaml(write(tmp_path, "# a comment\nlora_rank: 8\n\nbase_model: demo\n"))
    assert document.data == {"lora_rank": 8, "base_model": "demo"}
    assert document.place("base_model").endswith("sft.yaml:4: base_model")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "sft.yaml:3: the key 'a' is given twice (first on line 1)"),
        ("a: !!python/object/apply:os.system [ls]\n", "sft.yaml:1: the tag tag:yaml.org,2002:python/object/apply"),
        ("a: [1, 2\n", "sft.yaml:2: not valid YAML"),
        ("- 1\n- 2\n", "the file must hold 'key: value' lines"),
        ("just words\n", "the file must hold 'key: value' lines"),
        ("", "the file must hold 'key: value' lines"),
        (b"a: 1\nb: \xff\xfe\n", "sft.yaml:2: not UTF-8"),
        ("a: 1\n\tb: 2\n", "sft.yaml:2: not valid YAML"),
    ],
)
def test_a_bad_file_is_refused_with_its_line(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_yaml(write(tmp_path, content))
    assert message in str(caught.value)


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_yaml(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="this is a folder"):
        load_yaml(tmp_path)
