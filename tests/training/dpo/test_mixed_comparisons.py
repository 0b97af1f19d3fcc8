"""A reward model on several sources trains on as many pairs of each as were asked for, both orders together."""

import json
from pathlib import Path

from sota_ml_researcher.data.mixtures import Mix
from sota_ml_researcher.training.dpo.config import load_dpo_settings
from sota_ml_researcher.training.dpo.reward_model import comparison_config


def test_comparisons_keep_the_amounts_of_their_sources(tmp_path: Path) -> None:
    sources = [{"path": str(tmp_path / f"{i}.jsonl"), "rows": rows, "name": f"s{i}"} for i, rows in enumerate((3, 9))]
    for i, source in enumerate(sources):
        pairs = [{"ask": f"{i} {j}", "chosen": "yes", "rejected": "no"} for j in range(5)]
        Path(str(source["path"])).write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    columns = {"prompt": "ask", "chosen": "chosen", "rejected": "rejected"}
    given = {"base_model": "demo", "train_file": sources, "loss": "reward_model", "columns": columns, "batch_size": 4}
    config = comparison_config(tmp_path, load_dpo_settings(None, given).config)
    assert [(source.name, source.rows, source.columns) for source in config.sources] == [
        ("s0", 6, None),
        ("s1", 18, None),
    ]
    assert config.batch_size == 8
    sizes = [len(source.file.read_text().splitlines()) for source in config.sources]
    assert sizes == [10, 10]
    assert Mix.of(config.sources, sizes).taken == (6, 18)
