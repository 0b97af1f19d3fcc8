"""The commands of a terminal that need no engine: what they print, what they refuse, and how they end."""

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from fill_readme import BENCHMARKS, CLUSTERS, COMMANDS, README, benchmarks_page, clusters_page, commands_page, filled
from terminal_calls import json_of, recorded, refused, typed

from sota_ml_researcher.jobs import run_files
from sota_ml_researcher.jobs.kinds import KINDS
from sota_ml_researcher.jobs.registry import Registry
from sota_ml_researcher.jobs.states import JobState
from sota_ml_researcher.server.cli import cli
from sota_ml_researcher.server.config_reference import keys_of
from sota_ml_researcher.server.output import COMMANDS as COMMAND_OF_TOOL
from sota_ml_researcher.server.output import columns, in_commands
from sota_ml_researcher.server.run_command import config_model
from sota_ml_researcher.templates.catalog import read_template, template_kinds
from sota_ml_researcher.tools import TOOLS

ESCAPE = "\x1b[2J"


def test_the_page_of_commands_and_the_readme_are_what_the_program_says() -> None:
    written = "Run: python scripts/fill_readme.py"
    assert COMMANDS.read_text() == commands_page(), written
    assert CLUSTERS.read_text() == clusters_page(CLUSTERS.read_text()), written
    assert BENCHMARKS.read_text() == benchmarks_page(BENCHMARKS.read_text()), written
    assert README.read_text() == filled(README.read_text()), written


def test_every_command_says_what_it_does_in_whole_sentences() -> None:
    shown = typed("--help").stdout
    assert set(re.findall(r"(?m)^  ([a-z]+)  ", shown)) == set(cli.commands)
    assert "..." not in shown.split("Commands:")[1]


def test_the_module_is_the_command(own_home: Path) -> None:
    command = [sys.executable, "-m", "sota_ml_researcher", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == typed("--version").stdout
    assert not list(own_home.iterdir())  # neither help nor version touch the state


def test_help_loads_nothing_that_only_a_command_needs() -> None:
    script = "import sys, sota_ml_researcher.server.cli; print(*{m.split('.')[0] for m in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not {"pydantic", "mcp", "rich", "sqlite3", "yaml", "numpy", "anyio"} & set(loaded)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_of_the_shell(shell: str) -> None:
    assert "_ML_RESEARCHER_COMPLETE" in typed("completion", shell).stdout


def test_completion_knows_the_jobs(own_home: Path) -> None:
    job = recorded(own_home, JobState.FAILED)
    words = {"COMP_WORDS": "ml-researcher logs sft", "COMP_CWORD": "2", "_ML_RESEARCHER_COMPLETE": "bash_complete"}
    script = "from sota_ml_researcher.server.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", script], env=os.environ | words, capture_output=True, text=True)
    assert done.stdout == f"plain,{job.id}\n"


# Templates and the reference of configs


@pytest.mark.parametrize("name", template_kinds())
def test_a_template_is_printed_as_it_is(name: str) -> None:
    assert typed("template", name).stdout == read_template(name)
    assert json_of("template", f"template://{name}") == {"name": name, "text": read_template(name)}
    assert name in typed("template").stdout


def test_an_unknown_template_is_named() -> None:
    assert "there is no template 'sfft'. Did you mean 'sft'?" in refused("template", "sfft", code=2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_has_every_key_with_its_default_and_meaning(kind: str) -> None:
    printed = yaml.safe_load(typed("config", kind).stdout)
    fields = config_model(kind).model_fields
    assert list(printed) == ["kind", *fields]
    for key in keys_of(kind):
        assert key.meaning, key.name
        assert key.required == fields[key.name].is_required()
        if not key.required and kind != "reward_model":
            default = fields[key.name].get_default(call_default_factory=True)
            assert printed[key.name] == (list(default) if isinstance(default, tuple) else default)


def test_the_reference_says_what_a_key_takes_and_its_rule() -> None:
    shown = typed("config", "sft").stdout
    assert "# whole number, above 0; rule lora.rank.default\nlora_rank: 32\n" in shown
    assert "# linear | cosine | constant; rule sft.schedule.linear\nlr_schedule: linear\n" in shown
    assert "#   type: " in typed("config", "grpo").stdout  # the keys of an entry of rewards
    assert "loss: reward_model" in typed("config", "reward_model").stdout


def test_a_filled_in_reference_is_a_config_that_runs(tmp_path: Path) -> None:
    text = typed("config", "sft").stdout.replace("base_model:   #", "base_model: demo #")
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace("train_file:   #", "train_file: demo:sft_train #"))
    assert "SFT of demo" in typed("run", str(path), "--validate-only").stdout


# Plans


@pytest.mark.parametrize(
    ("template", "head"),
    [
        ("sft", "SFT of demo on embedded"),
        ("dpo", "DPO (dpo, beta 0.1) of demo on embedded"),
        ("grpo", "RL (ppo, exact reward) of demo"),
        ("ppo", "RL (ppo, "),
        ("eval", "Judge evaluation of"),
        ("generation", "Recipe preferences, written by demo"),
    ],
)
def test_a_template_is_planned_without_saying_its_kind(template: str, head: str) -> None:
    result = typed("run", f"template://{template}", "--validate-only")
    assert result.exit_code == 0, result.output
    assert head in result.stdout and "validate_only" not in result.stdout
    assert Registry().find() == []


def test_a_plan_in_json_is_the_tools_answer() -> None:
    plan = json_of("run", "template://sft", "num_steps=7", "num_epochs=null", "learning_rate=1e-3", "--validate-only")
    assert (plan["state"], plan["total_steps"], plan["config"]["learning_rate"]) == ("planned", 7, 1e-3)
    assert plan["origins"]["num_steps"].startswith("override")


def write(folder: Path, **config: object) -> str:
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


@pytest.mark.parametrize(("data", "method"), [("sft_train", "SFT"), ("dpo_train", "DPO (dpo, beta 0.1)")])
def test_rows_say_which_of_two_kinds_with_the_same_keys_is_meant(data: str, method: str, tmp_path: Path) -> None:
    config = write(tmp_path, base_model="demo", train_file=f"demo:{data}", num_steps=100)
    assert f"{method} of demo" in typed("run", config, "--validate-only").stdout


def test_a_relative_file_of_the_config_says_it_too(tmp_path: Path) -> None:
    pair = {"prompt": "say a", "chosen": "a", "rejected": "b"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    plan = json_of(
        "run", write(tmp_path, base_model="demo", train_file="pairs.jsonl"), "num_steps=1", "--validate-only"
    )
    assert "beta" in plan["config"]


def test_the_kind_can_be_said_in_the_file_and_on_the_command_line(tmp_path: Path) -> None:
    config = write(tmp_path, kind="dpo", base_model="demo", train_file="demo:dpo_train", num_steps=100)
    assert "DPO (dpo" in typed("run", config, "--validate-only").stdout
    assert "contradicts kind: dpo" in refused("run", config, "--kind", "sft", "--validate-only", code=2)
    model = typed("run", config, "--kind", "reward_model", "--validate-only")
    assert "eward model" in model.stdout, model.output
    said = refused("run", config, "kind=reward_model", "--validate-only", code=2)
    assert "Write kind: dpo, and loss: reward_model" in said


def test_a_benchmark_is_planned(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n} plus 1?", "reference": str(n + 1)} for n in range(5)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = write(tmp_path, task="rows.jsonl", model="demo", scorer="exact", max_response_tokens=16)
    result = typed("run", config, "--validate-only")
    assert "Benchmark" in result.stdout and "5 items, 5 answers" in result.stdout, result.output
    assert Registry().find() == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["template://sft", "lerning_rate=1"], "lerning_rate: unknown key. Did you mean 'learning_rate'?"),
        (["template://sft", "num_steps"], "'num_steps' is no change. Write key=value"),
        (["template://sft", "seed=1", "seed=2"], "a key is given twice"),
        (["template://sft", "apply_to=[mlp"], "apply_to: '[mlp' is not a YAML value"),
        (["template://sft", "seed=!!python/object:os.system x"], "is not a YAML value"),
        (["template://sft", "batch_size=big"], "batch_size: "),
        (["template://sftt"], "there is no template 'sftt'. Did you mean 'sft'?"),
        (["template://sft", "--kind", "grop"], "there is no kind of job 'grop'. Did you mean 'grpo'?"),
        (["template://sft", "kind=5"], "there is no kind of job '5'"),
        (["nowhere.yaml"], "nowhere.yaml: no such file"),
        ([""], "the name of the config is empty"),
        (["template://sft", "train_file=gone.jsonl"], "no such file: gone.jsonl"),
    ],
)
def test_a_wrong_run_is_one_line_that_names_the_place(words: list[str], said: str) -> None:
    assert said in refused("run", *words, "--validate-only", code=2)
    assert Registry().find() == []


def test_keys_of_no_kind_are_refused_with_the_kinds(tmp_path: Path) -> None:
    said = refused("run", write(tmp_path, seed=1), "--validate-only", code=2)
    kinds = "benchmark or dpo or generation or grpo or judge_eval or sft"
    assert f"its keys do not say whether this is {kinds}. Add --kind" in said
    assert "say whether this is" in refused("run", write(tmp_path, colour="red"), code=2)


def test_without_a_terminal_a_job_starts_with_yes_alone() -> None:
    result = typed("run", "template://sft")
    assert result.exit_code == 2 and "SFT of demo" in result.stdout
    assert "nothing was started: without a terminal to ask at, it needs --yes" in result.stderr
    assert Registry().find() == []


def test_following_goes_with_a_start() -> None:
    assert typed("run", "template://sft", "--validate-only", "--follow").exit_code == 2


# Jobs


def test_ids_are_never_cut(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [recorded(own_home, JobState.FAILED, kind=kind) for kind in ("judge_eval", "reward_model", "sft")]
    for width in ("20", "80"):
        monkeypatch.setenv("COLUMNS", width)
        shown = typed("jobs").stdout
        assert all(re.search(rf"(?m)^{job.id}  ", shown) for job in jobs)
        assert "\x1b" not in shown and "…" not in shown


def test_jobs_are_listed_by_state_and_up_to_a_limit(own_home: Path) -> None:
    failed, done = recorded(own_home, JobState.FAILED), recorded(own_home, JobState.SUCCEEDED)
    assert [job["job_id"] for job in json_of("jobs", "--state", "failed")["jobs"]] == [failed.id]
    shown = typed("jobs", "--state", "succeeded").stdout
    assert done.id in shown and failed.id not in shown
    assert done.id in typed("jobs", "--limit", "1").stdout
    assert "No cancelled jobs" in typed("jobs", "--state", "cancelled").stdout
    assert typed("jobs", "--limit", "0").exit_code == 2
    assert typed("jobs", "--state", "broken").exit_code == 2


def test_a_job_is_named_by_the_beginning_of_its_id(own_home: Path) -> None:
    job = recorded(own_home, JobState.FAILED, log="boom\n")
    assert job.id in typed("jobs", job.id[:6]).stdout
    assert typed("logs", "sft").stdout == "boom\n"
    other = recorded(own_home, JobState.FAILED)
    assert f"2 jobs begin with 'sft': {other.id}, {job.id}" in refused("logs", "sft")


@pytest.mark.parametrize(
    "words",
    [
        ["jobs"], ["jobs", "--follow"], ["jobs", "--cancel"], ["jobs", "--resume"], ["logs"], ["rm"], ["analyze"],
        ["sample", "-p", "x"], ["export"], ["checkpoints", "--keep-best"],
    ],
)  # fmt: skip
def test_an_unknown_job_is_one_line_with_a_command(words: list[str]) -> None:
    command = [words[0], "sft-000000", *words[1:]] if words[0] != "checkpoints" else [*words, "sft-000000"]
    assert "there is no job 'sft-000000'. `ml-researcher jobs` shows the ids there are." in refused(*command)


def test_what_comes_next_is_a_command_of_the_terminal(own_home: Path) -> None:
    job = recorded(own_home, JobState.FAILED)
    assert f"Next: `ml-researcher logs {job.id}` says more" in typed("jobs", job.id).stdout
    done = recorded(own_home, JobState.SUCCEEDED)
    assert f"Next: `ml-researcher sample {done.id} --prompt TEXT` to try the result" in typed("jobs", done.id).stdout
    assert f"`ml-researcher jobs {done.id}` shows its result" in refused("jobs", done.id, "--cancel")


def test_tools_are_named_as_commands() -> None:
    assert set(COMMAND_OF_TOOL) <= {spec.function.__name__ for spec in TOOLS}
    said = in_commands("run_judge_eval(finetuned_model='sft-1', ...): then wait_for_job(job_id='x', since_step=3)")
    assert said == "`ml-researcher run template://eval finetuned_model=sft-1`: then `ml-researcher jobs x --follow`"


def test_a_cap_goes_with_resuming_alone_and_is_set(own_home: Path) -> None:
    job = recorded(own_home, JobState.SUCCEEDED)
    assert typed("jobs", job.id, "--max-cost-usd", "3").exit_code == 2
    assert "its cap cannot be changed now" in refused("jobs", job.id, "--resume", "--max-cost-usd", "3")
    failed = recorded(own_home, JobState.FAILED)
    said = refused("jobs", failed.id, "--resume", "--max-cost-usd", "0")
    assert "the cap must be above the $0 spent so far" in said


def test_options_of_one_job_without_a_job_are_refused() -> None:
    assert "Which job?" in typed("jobs", "--follow").stderr


# Logs


def test_the_last_lines_of_a_log(own_home: Path) -> None:
    job = recorded(own_home, JobState.FAILED, log="one\ntwo\nthree\nhalf")
    assert typed("logs", job.id).stdout == "one\ntwo\nthree\nhalf\n"
    assert typed("logs", job.id, "-n", "1").stdout == "three\nhalf\n"
    assert [json.loads(line)["line"] for line in typed("logs", job.id, "--json").stdout.splitlines()][-1] == "half"
    assert typed("logs", job.id, "-f").stdout == "one\ntwo\nthree\nhalf\n"  # it has ended: nothing to wait for


def test_text_of_a_model_cannot_steer_the_terminal(own_home: Path) -> None:
    job = recorded(own_home, JobState.FAILED, log=f"{ESCAPE}gone\u202egnp\r50%\r100%\ta\n")
    assert typed("logs", job.id).stdout == "\\x1b[2Jgone\\u202egnp\n50%\n100%\ta\n"


def test_columns_are_as_wide_as_their_cells() -> None:
    assert columns(("a", "bb"), [("xyz", "1")]) == "a    bb\nxyz  1"
    assert columns(("a", "bb"), []) == "a  bb"


# Removing


def checkpoints_of(job_folder: Path, *names: str) -> None:
    records = [{"name": name, "step": 1, "state_path": f"tinker://r/weights/{name}"} for name in names]
    (job_folder / run_files.CHECKPOINTS).write_text("".join(json.dumps(record) + "\n" for record in records))


def test_removing_shows_what_goes_and_needs_a_yes(own_home: Path) -> None:
    job = recorded(own_home, JobState.FAILED, log="x" * 1000)
    result = typed("rm", job.id)
    assert result.exit_code == 2 and str(job.folder) in result.stdout
    assert "nothing was removed: without a terminal to ask at, it needs --yes" in result.stderr
    assert job.folder.exists()
    assert json_of("rm", job.id, "--yes") == {"job_id": job.id, "size_bytes": 1000, "checkpoints_deleted": 0}
    assert not job.folder.exists() and Registry().find() == []


def test_a_running_job_is_never_removed(own_home: Path) -> None:
    job = recorded(own_home, JobState.QUEUED)
    said = refused("rm", job.id, "--yes")
    assert f"job {job.id} is queued: nothing was removed. `ml-researcher jobs {job.id} --cancel` stops it." in said
    assert job.folder.exists()


def test_removing_takes_the_whole_id(own_home: Path) -> None:
    job = recorded(own_home, JobState.FAILED)
    assert f"Did you mean '{job.id}'?" in refused("rm", job.id[:-1], "--yes")
    assert job.folder.exists()


def test_what_a_removed_job_cost_still_counts(own_home: Path) -> None:
    job = recorded(own_home, JobState.FAILED)
    Registry().note_cost(job.id, 2.5)
    assert typed("rm", job.id, "--yes").exit_code == 0
    assert Registry().spent_this_month() == 2.5


def test_checkpoints_that_cannot_be_reached_stop_a_removal(own_home: Path) -> None:
    place = {"base_model": "demo", "lora_rank": 4, "backend": "cluster", "base_url": "http://127.0.0.1:9"}
    job = recorded(own_home, JobState.FAILED, **place)
    checkpoints_of(job.folder, "a")
    result = typed("rm", job.id, "--yes")
    assert result.exit_code == 1 and "tinker://r/weights/a" in result.stdout
    assert job.folder.exists() and Registry().get(job.id)
    kept = typed("rm", job.id, "--yes", "--keep-checkpoints")
    assert kept.exit_code == 0 and "stay, under these paths" in kept.stdout


# Reading runs of other programs


def curve(path: Path, last: float) -> str:
    losses = [3.0 + (last - 3.0) * step / 39 for step in range(40)]
    path.write_text("".join(json.dumps({"step": s, "train_mean_nll": v}) + "\n" for s, v in enumerate(losses)))
    return str(path)


def test_a_file_of_metrics_is_analyzed_and_compared(tmp_path: Path) -> None:
    first, second = (tmp_path / name for name in ("a", "b"))
    first.mkdir()
    second.mkdir()
    files = curve(first / "metrics.jsonl", 1.0), curve(second / "metrics.jsonl", 2.0)
    shown = typed("analyze", files[0])
    assert shown.exit_code == 0 and "Report: " in shown.stdout and "Next: " in shown.stdout
    assert json_of("analyze", files[0])["report"] in shown.stdout
    compared = typed("compare", *files)
    assert "against the first run:" in compared.stdout and "Report: " in compared.stdout
    assert len(json_of("compare", *files)["pairs"]) == 1


def test_comparing_needs_two_runs(tmp_path: Path) -> None:
    said = typed("compare", curve(tmp_path / "metrics.jsonl", 1.0))
    assert said.exit_code == 2 and "Give two to eight runs, not 1" in said.stderr
    assert "nowhere.csv" in typed("analyze", "nowhere.csv").stderr


# The engine and the machine


def test_no_engine_is_said(own_home: Path) -> None:
    assert "No engine is running" in typed("engine", "status").stdout
    assert json_of("engine", "status") == {"running": False, "engine": None, "jobs": []}
    assert json_of("engine", "stop") == {"stopped": False}


def test_a_pid_that_is_another_programs_now_is_left_alone(own_home: Path) -> None:
    (own_home / "engine").mkdir()
    (own_home / "engine" / "engine.json").write_text(json.dumps({"url": "http://127.0.0.1:9", "pid": os.getpid()}))
    assert json_of("engine", "stop") == {"stopped": False}


def test_sampling_needs_a_prompt(tmp_path: Path) -> None:
    assert "Give --prompt TEXT" in typed("sample", "demo").stderr
    empty = tmp_path / "none.txt"
    empty.write_text("\n \n")
    assert "the file holds no prompt" in refused("sample", "demo", "--prompt-file", str(empty))
    assert "No such file" in refused("sample", "demo", "--prompt-file", str(tmp_path / "gone.txt"))


def test_costs_and_doctor_print_json(own_home: Path) -> None:
    job = recorded(own_home, JobState.FAILED)
    costs = json_of("costs", "--offline")
    assert [row["job_id"] for row in costs["jobs"]] == [job.id] and costs["unknown"] == 0
    assert typed("costs", "--days", "0").exit_code == 2
    checks = json.loads(typed("doctor", "--json").stdout)
    assert {"Python", "state folder"} <= {check["topic"] for check in checks}


def test_checkpoints_of_a_cluster_need_its_address() -> None:
    assert "needs --base-url" in typed("checkpoints", "--backend", "cluster").stderr
    assert "goes with --delete" in typed("checkpoints", "--yes").stderr


# How a command ends


def run_shell(script: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"ML": f"{sys.executable} -m sota_ml_researcher"}
    return subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)


def test_a_reader_that_has_enough_is_no_error() -> None:
    done = run_shell("$ML config grpo | head -n 1")
    assert done.stdout.count("\n") == 1 and done.stderr == ""


def on_a_terminal(*words: str, **environment: str) -> str:
    """What a command writes to a pseudo-terminal."""
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "sota_ml_researcher", *words]
    with subprocess.Popen(command, stdout=theirs, env=os.environ | {"TERM": "xterm"} | environment):
        os.close(theirs)
        written = b""
        with contextlib.suppress(OSError):  # Linux says so when the other end is closed
            while block := os.read(ours, 65536):
                written += block
    os.close(ours)
    return written.decode()


@pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals are POSIX's")
def test_a_terminal_gets_colours_and_a_bar_unless_it_wants_none(own_home: Path) -> None:
    job = recorded(own_home, JobState.FAILED)
    assert "\x1b[31mfailed" in on_a_terminal("jobs", NO_COLOR="")
    assert "\x1b[31m" not in on_a_terminal("jobs", NO_COLOR="1")
    followed = on_a_terminal("jobs", job.id, "--follow", COLUMNS="60")
    assert f"{job.id} failed" in followed and "Next: " in followed


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_one_sentence() -> None:
    done = run_shell("$ML template sft > /dev/full")
    assert done.returncode == 1
    assert done.stderr.startswith("ml-researcher: the system refused: ") and done.stderr.count("\n") == 1


def test_a_home_that_cannot_be_written_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ML_RESEARCHER_HOME", str(tmp_path / "file"))
    assert "this is a file, and a folder is needed" in refused("jobs")
