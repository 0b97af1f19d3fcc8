"""Files of rows that no honest program writes: each is answered, and never with anything but a sentence."""

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import write_tiny_model

from sota_ml_researcher.core.errors import ResearcherError
from sota_ml_researcher.data.check import check_dataset
from sota_ml_researcher.data.preference_check import kind_of, preference_report
from sota_ml_researcher.data.preferences import count_pairs
from sota_ml_researcher.data.supervised import count_tokens
from sota_ml_researcher.models.renderers import load_renderer

KEYS = (
    "messages conversations prompt completion input output instruction chosen rejected system history tools functions "
    "weight role from content value tool_calls function_call name reasoning_content thinking mask images question "
    "responses ratings scores train type text function arguments id"
).split()
ATOMS: list[Any] = [None, True, 0, 1, -1, 0.5, float("nan"), float("inf"), 10**30, "", " ", "text", "日本", "\ud800"]
ATOMS += ["\ufdd0", "\x00\x1b[31m", "<|im_end|>", "<think>a</think>b", "[", "{}", '[{"a":1}]', [], {}, [[]], [None]]
SAID: list[Any] = ["hi", "4", "<think>x</think>4", "a<|im_end|>", None, [{"type": "text", "text": "z"}]]
ORDERS = ("user assistant", "system user assistant", "user assistant tool assistant", "user assistant user assistant")
TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.random()
    if depth > 3 or kind < 0.4:
        return copy.deepcopy(rng.choice(ATOMS))
    if kind < 0.7:
        return {rng.choice([*KEYS, "\ud800"]): value(rng, depth + 1) for _ in range(rng.randint(0, 4))}
    return [value(rng, depth + 1) for _ in range(rng.randint(0, 3))]


def turn(rng: random.Random, role: str) -> dict[str, Any]:
    made = {"role": role, "content": copy.deepcopy(rng.choice(SAID))}
    if rng.random() < 0.3:
        made[rng.choice(KEYS)] = value(rng, 1)
    return made


def row(rng: random.Random) -> Any:
    shapes: list[Callable[[], Any]] = [
        lambda: {"messages": [turn(rng, role) for role in rng.choice(ORDERS).split()]},
        lambda: {"prompt": "q", "completion": "a"},
        lambda: {"instruction": "q", "input": "", "output": "a"},
        lambda: {"prompt": "q", "chosen": turn(rng, "assistant"), "rejected": "b"},
        lambda: {side: [turn(rng, "user"), turn(rng, "assistant")] for side in ("chosen", "rejected")},
        lambda: value(rng),
    ]
    made = rng.choice(shapes)()
    while isinstance(made, dict) and rng.random() < 0.4:
        made[rng.choice(KEYS)] = value(rng)
    return made


@pytest.mark.parametrize("files", [60, pytest.param(2000, marks=pytest.mark.drill)])
def test_every_file_gets_an_answer_that_can_be_sent(tmp_path: Path, files: int) -> None:
    rng = random.Random(files)
    model = str(write_tiny_model(tmp_path / "model", template=TEMPLATE))
    renderers = [load_renderer(model), load_renderer(model, "qwen3")]
    path = tmp_path / "t.jsonl"
    for _ in range(files):
        raw = bytearray("\n".join(json.dumps(row(rng)) for _ in range(rng.randint(1, 5))), "utf-8")
        for _ in range(rng.choice([0, 0, 0, 3])):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        path.write_bytes(raw)
        renderer = rng.choice(renderers)
        checks: list[Callable[[], Any]] = [
            lambda renderer=renderer: check_dataset(path, renderer=renderer, val_file=path, max_seq_len=40),
            lambda renderer=renderer: preference_report(path, path, renderer=renderer, max_seq_len=40),
            lambda renderer=renderer: count_tokens(path, renderer, max_seq_len=None).notes,
            lambda renderer=renderer: count_pairs(path, renderer, max_seq_len=30).notes,
            lambda: kind_of(path),
        ]
        for check in checks:
            try:
                answered = check()
            except ResearcherError as error:
                answered = str(error)
            said = answered if isinstance(answered, str | tuple) else answered.model_dump_json()
            str(said).encode()  # half a surrogate pair could not be sent
            assert "Traceback" not in str(said)
