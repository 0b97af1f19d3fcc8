"""Malformed calls, configs, data files and requests by the thousand, the same ones each time: `make drill`.

Each answer is read: no traceback in it or in a log, no sentence of the SDK's in the place of ours, no more than 5 s and
1 GB for any of them.
"""

from __future__ import annotations

import json
import logging
import random
import re
import resource
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import anyio
import httpx2
import psutil
import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError

from sota_ml_researcher.backends.embedded import ensure_engine
from sota_ml_researcher.core.paths import demo_data
from sota_ml_researcher.engine.api import openai_api, rest, routes
from sota_ml_researcher.server.app import build_server
from sota_ml_researcher.tools import TOOLS

pytestmark = [pytest.mark.drill, pytest.mark.usefixtures("stop_engine")]

CALLS, CONFIGS, DATA_FILES, REQUESTS = 10_000, 2_000, 2_000, 500
SLOWEST_S, MOST_BYTES = 5.0, 1_000_000_000
# The first use of each pays for its imports; ours, not the caller's.
WARM_UP = 30

NASTY: list[Any] = [
    None,
    True,
    0,
    -1,
    2**63,
    10**400,
    1e308,
    float("nan"),
    float("inf"),
    "",
    " ",
    "nan",
    "None",
    "../../etc/passwd",
    "/dev/zero",
    "/dev/null",
    "/",
    "~",
    "demo",
    "demo:sft_train",
    "demo:nothing",
    "template://sft",
    "template://../x",
    "tinker://x/weights/y",
    "tinker://../weights/..",
    "run://../x",
    "sft-000000",
    "http://127.0.0.1:9",
    "http://[::1",
    "a" * 5_000,
    "\x00",
    "\x1b[31mred\x07",
    "\ud800",
    "\u202egnp.exe",
    "%s%n{0}${x}",
    "<|im_end|>\n<|im_start|>system",
    "2024-01-05",
    [],
    {},
    [None],
    [[[[]]]],
    ["a", 1, None],
    {"a": {"b": {"c": []}}},
    {"": ""},
    [{"role": "user", "content": None}],
    [{"role": "user", "content": "say cat"}],
]
PLACES = ["x", "..", "%2e%2e", "a" * 300, "\u00e9", "0", "weights"]
YAML_BOMB = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
)


class Watch:
    """What the answers and the logs must not hold, and how long and how large they may be."""

    def __init__(self) -> None:
        self.calls = 0
        self.faults: list[str] = []

    def look(self, what: str, text: str, began: float) -> None:
        self.calls += 1
        took = time.monotonic() - began
        if "Traceback" in text or 'File "' in text:
            self.faults.append(f"{what}: a traceback: {text[:300]}")
        if text.startswith("Error executing tool") or not text.strip():
            self.faults.append(f"{what}: no sentence of ours: {text[:300]!r}")
        if took > SLOWEST_S and self.calls > WARM_UP:
            self.faults.append(f"{what}: {took:.1f} s")

    def fail_if_any(self) -> None:
        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        assert not self.faults, "\n".join([f"{len(self.faults)} of {self.calls}:", *self.faults[:20]])
        assert held < MOST_BYTES, f"{held / 1e9:.2f} GB"


@pytest.fixture
def watch(caplog: pytest.LogCaptureFixture) -> Generator[Watch]:
    watch = Watch()
    with caplog.at_level(logging.INFO):
        yield watch
    watch.faults += [f"log: {r.getMessage()[:200]}: {r.exc_info[1]!r:.200}" for r in caplog.records if r.exc_info]
    watch.fail_if_any()


async def _call(client: Client, watch: Watch, tool: str, arguments: dict[str, Any], what: str) -> None:
    began = time.monotonic()
    try:
        result = await client.call_tool(tool, arguments, read_timeout_seconds=60)
        text = "\n".join(getattr(block, "text", "x") for block in result.content)
    except MCPError as error:
        text = str(error)
    except (UnicodeEncodeError, ValueError):  # no client could have sent it
        return
    watch.look(what, text, began)


def _run(watch: Watch, number: int, make: Callable[[random.Random], tuple[str, dict[str, Any], str]]) -> None:
    async def main() -> None:
        rng = random.Random(number)
        async with Client(build_server()) as client:
            for _ in range(number):
                tool, arguments, what = make(rng)
                await _call(client, watch, tool, arguments, what)

    anyio.run(main)


def _value(rng: random.Random, schema: dict[str, Any]) -> Any:
    kinds = schema.get("type", "string")
    kind = rng.choice(kinds) if isinstance(kinds, list) else kinds
    if "enum" in schema:
        return rng.choice(schema["enum"])
    match kind:
        case "integer" | "number":
            return rng.choice([1, 2, 7, 0.5])
        case "boolean":
            return rng.random() < 0.5
        case "array":
            return [_value(rng, schema.get("items", {})) for _ in range(rng.randrange(3))]
        case "object":
            return {rng.choice(["base_model", "train_file", "num_steps", "x"]): rng.choice(NASTY)}
        case _:
            return rng.choice(["demo", "demo:sft_train", "sft-000000", "/tmp", "x"])


def test_tools_answer_any_arguments_with_a_sentence(watch: Watch) -> None:
    ensure_engine()
    names = [spec.function.__name__ for spec in TOOLS]
    known: dict[str, dict[str, Any]] = {}

    async def schemas() -> None:
        async with Client(build_server()) as client:
            for tool in (await client.list_tools()).tools:
                known[tool.name] = tool.input_schema

    anyio.run(schemas)

    def call(rng: random.Random) -> tuple[str, dict[str, Any], str]:
        tool = rng.choice(names)
        properties: dict[str, Any] = known[tool].get("properties", {})
        required = known[tool].get("required", [])
        taken = [name for name in properties if name in required or rng.random() < 0.4]
        arguments = {n: rng.choice(NASTY) if rng.random() < 0.4 else _value(rng, properties[n]) for n in taken}
        if rng.random() < 0.1:
            arguments[rng.choice(["dry_run", "max_length", "\u00e9", "a" * 300])] = rng.choice(NASTY)
        if "validate_only" in properties:  # no thousand jobs
            arguments["validate_only"] = True
        return tool, arguments, f"{tool}({arguments!r:.300})"

    _run(watch, CALLS, call)


def test_any_config_is_planned_or_refused_with_a_sentence(watch: Watch, tmp_path: Path) -> None:
    templates = Path(sys.modules["sota_ml_researcher"].__path__[0]) / "templates"
    tools = {
        "sft": "start_sft",
        "dpo": "start_dpo",
        "grpo": "start_grpo",
        "ppo": "start_grpo",
        "eval": "run_judge_eval",
        "generation": "start_generation",
    }
    texts = {name: (templates / f"{name}.yaml").read_text(encoding="utf-8") for name in tools}
    file = tmp_path / "config.yaml"

    def config(rng: random.Random) -> tuple[str, dict[str, Any], str]:
        name = rng.choice(sorted(tools))
        lines = texts[name].splitlines()
        for _ in range(rng.randrange(1, 4)):
            lines = _changed(rng, lines)
        content = "\n".join(lines).encode("utf-8", "surrogatepass")
        if rng.random() < 0.1:
            content = content[: rng.randrange(len(content))]
        if rng.random() < 0.1:
            content = bytes(b ^ (rng.random() < 0.01) << rng.randrange(8) for b in content)
        file.write_bytes(content)
        return tools[name], {"config": str(file), "validate_only": True}, f"{name}: {content!r:.3000}"

    _run(watch, CONFIGS, config)


def _changed(rng: random.Random, lines: list[str]) -> list[str]:
    at = rng.randrange(max(1, len(lines)))
    key = lines[at].partition(":")[0] if lines else "x"
    nasty = rng.choice(NASTY)
    match rng.randrange(8):
        case 0:
            return lines[:at] + lines[at + 1 :]
        case 1:
            return [*lines[:at], lines[at] if lines else "", *lines[at:]]
        case 2:
            return [*lines, YAML_BOMB, "train_file: *a8"]
        case 3:
            return [*lines[:at], "[" * rng.choice([10, 3_000]), *lines[at:]]
        case 4:
            return [*lines[:at], f"{key}: !!python/object/apply:os.system ['true']", *lines[at + 1 :]]
        case 5:
            return [
                *lines[:at],
                f"{key}: {rng.choice(['0x1F', '1e999', '.nan', '2024-01-05', '~', 'on', '1_000', '&x *x'])}",
            ]
        case 6:
            return [*lines[:at], f"{key}x{at}: 1", *lines[at:]]
        case _:
            return [*lines[:at], f"{key}: {json.dumps(nasty)}", *lines[at + 1 :]]


def test_any_data_file_is_checked_or_refused_with_a_sentence(watch: Watch, tmp_path: Path) -> None:
    rows = {
        name: [json.loads(line) for line in demo_data(name, where="").read_text(encoding="utf-8").splitlines()[:20]]
        for name in ("sft_train", "dpo_train", "say_train")
    }

    def data(rng: random.Random) -> tuple[str, dict[str, Any], str]:
        name = rng.choice(sorted(rows))
        chosen = [dict(row) for row in rng.sample(rows[name], 8)]
        for _ in range(rng.randrange(1, 5)):
            row = rng.choice(chosen)
            row[rng.choice([*row, "weight", "tools", "messages", "x"])] = rng.choice(NASTY)
        lines = [json.dumps(row) for row in chosen]
        if rng.random() < 0.3:
            lines[rng.randrange(len(lines))] = rng.choice(["", "{", "[" * 50_000, "null", '"x"', "1e999", '{"a": 1} x'])
        content = rng.choice(["\n", "\n", "\r\n", "\u2028"]).join(lines).encode()
        if rng.random() < 0.2:
            content = content[: rng.randrange(len(content))]
        if rng.random() < 0.2:
            content = b"".join([rng.choice([b"\xef\xbb\xbf", b"\xff\xfe", b"PAR1", b"\x1f\x8b"]), content])
        file = tmp_path / f"rows{rng.choice(['.jsonl', '.jsonl', '.json', '.csv', '.parquet', '.txt', ''])}"
        file.write_bytes(content)
        arguments: dict[str, Any] = {"train_file": str(file), "base_model": "demo"}
        if rng.random() < 0.3:
            arguments["max_seq_len"] = rng.choice([1, 16, 512, 10**6])
        return "check_dataset", arguments, f"{file.name}: {content!r:.1000}"

    _run(watch, DATA_FILES, data)


def test_the_engine_answers_any_request_with_a_status_below_500(watch: Watch, own_home: Path) -> None:
    url = ensure_engine()
    written = json.loads((own_home / "engine" / "engine.json").read_bytes())
    engine = psutil.Process(written["pid"])
    headers = {"X-API-Key": str(written.get("key", "")), "Content-Type": "application/json"}
    table = [route for part in (routes, rest, openai_api) for route in part.routes()]
    rng = random.Random(REQUESTS)
    with httpx2.Client(base_url=url, timeout=60) as client:
        for _ in range(REQUESTS):
            route = rng.choice(table)
            path = re.sub(r"\{\w+\}", lambda _: rng.choice(PLACES), route.path)
            method = rng.choice([*sorted(route.methods or {"GET"} - {"HEAD"}), rng.choice(["POST", "PUT", "DELETE"])])
            body = _body(rng)
            began = time.monotonic()
            answer = client.request(method, path, content=body, headers=headers)
            watch.look(f"{method} {path} {body!r:.300}", answer.text or "empty", began)
            if answer.status_code >= 500:
                watch.faults.append(f"{method} {path} {body!r:.300}: {answer.status_code} {answer.text[:200]}")
    log = (own_home / "engine" / "log.txt").read_text(encoding="utf-8", errors="replace")
    assert "Traceback" not in log, log[log.index("Traceback") :][:2000]
    assert engine.memory_info().rss < 2 * MOST_BYTES
    assert httpx2.get(f"{url}/api/v1/healthz", headers=headers, timeout=SLOWEST_S).status_code == 200


def _body(rng: random.Random) -> bytes:
    keys = [
        "model_id",
        "session_id",
        "base_model",
        "prompt",
        "sampling_params",
        "num_samples",
        "path",
        "lora_config",
        "seq_id",
    ]
    body: Any = {key: rng.choice(NASTY) for key in rng.sample(keys, rng.randrange(len(keys)))}
    if rng.random() < 0.3:
        body["prompt"] = {"chunks": [{"type": "encoded_text", "tokens": rng.choice([[1], [], [2**70], ["x"], [-1]])}]}
        body["sampling_params"] = {"max_tokens": rng.choice(NASTY), "temperature": rng.choice(NASTY)}
        body["base_model"] = "demo"
    if rng.random() < 0.1:
        return rng.choice([b"", b"{", b"[" * 100_000, b"\x00", b"\xff", b"null", b'"x"', b"1e999"])
    return json.dumps(body).encode()
