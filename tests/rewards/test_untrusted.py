"""Whatever a row, a model or a custom file does, it stays in its sandbox, and no other sample is scored otherwise."""

import asyncio
import contextlib
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hostile_rows import CANARY, HONEST, NO_VERDICT, SOLUTION, WRONG, rows, traces_outside

from sota_ml_researcher.core.errors import DataError
from sota_ml_researcher.rewards.environments import make_environment
from sota_ml_researcher.rewards.episodes import Episode
from sota_ml_researcher.rewards.problems import Problem, missing_key
from sota_ml_researcher.rewards.process_pool import LARGEST_SCORE, RefusedError, Scored, ScoringFailedError, read_answer
from sota_ml_researcher.rewards.reward_config import RewardPart
from sota_ml_researcher.rewards.sandbox import modes
from sota_ml_researcher.rewards.scorers import Response, Score, Scorers, rules_command
from sota_ml_researcher.training.rl.config import load_rl_settings

pytestmark = pytest.mark.skipif(modes.isolation().mode is None, reason="no isolation here")
# Writes to every file that is open.
WRITES = "import os\nfor fd in range(3, 64):\n    try:\n        os.write(fd, {})\n    except OSError:\n        pass"
CODE = RewardPart.model_validate({"type": "code", "timeout_s": 1.0})


def problem(line: int = 7, **row: Any) -> Problem:
    return Problem(line, ({"role": "user", "content": "double"},), row)


def scored(part: RewardPart, *samples: tuple[Problem, str], allow_unsandboxed: bool = False) -> list[Score]:
    """The samples one after the other, by one scorer: what one of them does, the next one would feel."""

    async def run() -> list[Score]:
        scorers = Scorers([part], max_tokens=100, allow_unsandboxed=allow_unsandboxed)
        try:
            return [(await scorers.score_group(row, [Response(text, 9)]))[0] for row, text in samples]
        finally:
            await scorers.close()

    return asyncio.run(run())


@pytest.fixture(autouse=True)
def one_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process of each kind, so that samples meet."""
    monkeypatch.setattr("sota_ml_researcher.rewards.scorers.at_once", lambda: 1)
    monkeypatch.setattr("sota_ml_researcher.rewards.environments.at_once", lambda: 1)


@pytest.fixture
def open_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder outside of any sandbox that everyone may write to, beside keys in the environment."""
    for name in ("TINKER_API_KEY", "ANTHROPIC_API_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, CANARY)
    target = tmp_path / "open"
    target.mkdir(mode=0o777)
    for folder in (target, *target.parents[:3]):
        folder.chmod(folder.stat().st_mode | 0o005)
    target.chmod(0o777)
    (target / "secret.txt").write_text(CANARY)
    return target


@pytest.mark.parametrize("name", list(rows(Path("/nowhere"))))
def test_a_row_s_tests_can_do_no_harm_and_change_no_other_score(name: str, open_folder: Path) -> None:
    row, honest = problem(tests=rows(open_folder)[name]), problem(8, tests=HONEST)
    first, right, wrong = scored(CODE, (row, SOLUTION), (honest, SOLUTION), (honest, WRONG))
    assert traces_outside(open_folder) == []
    assert CANARY not in first.note
    assert first.failed == (name in NO_VERDICT), first.note
    assert first.note.startswith("line 7: code: the tests") or not first.failed
    assert [(s.reward, s.failed) for s in (right, wrong)] == [(1.0, False), (0.0, False)]
    assert not [p for p in psutil.Process().children(recursive=True) if "sandbox" in " ".join(p.cmdline())]


def test_what_rows_are_told_of_the_environment_is_nothing_of_ours(open_folder: Path) -> None:
    (score,) = scored(CODE, (problem(tests=rows(open_folder)["environment"]), SOLUTION))
    assert "'HOME': '/tmp'" in score.note
    assert set(re.findall(r"'(\w+)': ", score.note)) - {"LC_CTYPE"} == {"PATH", "HOME", "LANG", "PYTHONHASHSEED"} | {
        f"{library}_NUM_THREADS" for library in ("OMP", "OPENBLAS", "MKL")
    }


def test_rules_are_scored_by_a_process_without_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_API_KEY", CANARY)
    assert CANARY not in str(rules_command().options["env"])


def test_the_same_program_is_scored_alike_each_time() -> None:
    code = "def order():\n    return list({'a', 'b', 'c', 'd', 'e', 'f'})\n"
    (first,) = scored(CODE, (problem(tests="assert False, order()"), code))
    (again,) = scored(CODE, (problem(tests="assert False, order()"), code))
    assert first.note == again.note != ""


def test_tests_may_import_what_is_installed() -> None:
    tests = "import numpy as np\nassert np.allclose(np.array([double(1), double(2)]), [2, 4])"
    (score,) = scored(RewardPart(type="code"), (problem(tests=tests), SOLUTION))
    assert (score.reward, score.note) == (1.0, "")


@pytest.mark.parametrize(
    "cheat",
    [
        "def double(x):\n    raise StopIteration",
        WRITES.format("b'()' * 600000 + b'\\n'"),
        WRITES.format("b'[' * 100000 + b'\\n'"),
        WRITES.format("b'{\"names\": 3}\\n\\xff\\n' * 99"),
        "import os\nos.closerange(0, 64)",
    ],
)
def test_a_program_earns_nothing_through_the_channel(cheat: str) -> None:
    tests = "assert all(a == b for a, b in zip(map(double, [1, 2]), [2, 4]))"
    (score,) = scored(CODE, (problem(tests=tests), cheat))
    assert (score.reward, score.failed) == (0.0, False), score.note
    assert score.note != ""


@pytest.mark.parametrize(
    "answer",
    [
        # A message that cannot be shown, and one whose reading never ends: integers of one hash.
        "b\"{'error': 'ValueError', 'message': 0x\" + b'f' * 10000 + b'}\\n'",
        "repr({'value': {'plain': repr(set(range(0, 45000 * (2**61 - 1), 2**61 - 1)))}}).encode() + b'\\n'",
    ],
)
def test_a_program_that_wears_its_tests_out_earns_nothing_rather_than_no_score(answer: str) -> None:
    program = f"import os, time\nos.write(3, b\"{{'names': ['double']}}\\n\" + {answer})\ntime.sleep(60)"
    channels = "import os, stat\nfor fd in range(3, 64):\n    try:\n        if stat.S_ISSOCK(os.fstat(fd).st_mode):\n"
    channels += "            os.dup2(fd, 3)\n            break\n    except OSError:\n        pass\n"
    (score,) = scored(CODE, (problem(tests="assert double(1) == 2"), channels + program))
    assert (score.reward, score.failed) == (0.0, False), score.note


def test_an_answer_that_breaks_past_the_time_limit_still_earns_nothing() -> None:
    """Reading it outlasts the limit and then fails: the alarm is heard while the failure is being reported."""
    slow = RewardPart.model_validate({"type": "code", "timeout_s": 0.3})
    program = WRITES.format("b'()' * 1900000 + b'\\n'")
    (score,) = scored(slow, (problem(tests="assert double(1) == 2"), program))
    assert (score.reward, score.failed) == (0.0, False), score.note


def test_a_program_lends_no_name_of_python_s_to_a_star_import() -> None:
    cheat = "def double(x):\n    return x\ndef abs(x):\n    return 0\n__all__ = ['abs', 'double']\n"
    forged = WRITES.format("b\"{'names': ['double', 'abs', '__all__']}\\n\"") + "\n"
    tests = "from solution import *\nassert abs(double(2) - 4) < 1e-6"
    for code in (cheat, forged + cheat):
        assert scored(CODE, (problem(tests=tests), code))[0].reward == 0.0
    assert scored(CODE, (problem(tests=tests), "__all__ = ['double']\n" + SOLUTION))[0].reward == 1.0


def test_no_kind_of_socket_leads_outside() -> None:
    tests = (
        "import socket\nseen = []\nfor family in range(46):\n    try:\n        socket.socket(family).close()\n"
        "        seen.append(family)\n    except OSError:\n        pass\n"
        "assert seen == [socket.AF_UNIX, socket.AF_INET, socket.AF_INET6], seen\nassert double(1) == 2"
    )
    assert scored(CODE, (problem(tests=tests), SOLUTION))[0].note == ""


@pytest.mark.parametrize("turns", range(8))
def test_a_score_that_is_given_up_leaves_no_process(turns: int, tmp_path: Path) -> None:
    script = tmp_path / "slow.py"
    script.write_text("import time\ntime.sleep(30)\n\ndef reward(prompt, response, row):\n    return 1\n")
    parts = [CODE, RewardPart.model_validate({"type": "custom", "script": str(script)})]
    before = len(list(Path("/proc/self/fd").iterdir()))

    async def run() -> None:
        scorers = Scorers(parts, max_tokens=100)
        row = problem(tests="while True:\n    pass")
        task = asyncio.create_task(scorers.score_group(row, [Response("import time\ntime.sleep(30)", 9)]))
        for _ in range(turns):
            await asyncio.sleep(0.0 if turns < 6 else 0.02)
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(0)
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await scorers.close()

    asyncio.run(run())
    _, left = psutil.wait_procs(psutil.Process().children(recursive=True), timeout=5)
    assert not [process for process in left if "sandbox" in " ".join(process.cmdline())]
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_the_scoring_process_stays_small_whatever_a_program_answers() -> None:
    before = psutil.Process().memory_info().rss
    code = (
        "import os\nfor fd in range(3, 64):\n    try:\n        while True:\n            os.write(fd, b'[[],' * 60000)\n"
    )
    code += "    except OSError:\n        pass\n"
    scored(CODE, *[(problem(tests=HONEST), code)] * 3)
    assert psutil.Process().memory_info().rss - before < 64 << 20


# A reward that runs the response: the worst a user's file may do.
RUNS = """
def reward(prompt, response, row):
    names = {}
    exec(response, globals(), names)
    return names.get("s", 1.0)
"""
PLAIN = "s = 0.25"


@pytest.mark.parametrize(
    "text",
    [
        "import sys\nsys.modules['__main__'].checked = lambda v: {'score': 99.0, 'parts': {}}",
        "reward = lambda *a: 99.0",
        WRITES.format("b'not json\\n'"),
        WRITES.format("b''.join(b'%d again {\"score\": 99.0}\\n' % n for n in range(1, 9))"),
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(60)\n"
        "    os._exit(0)",
        "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
        "import os, signal\nos.kill(-1, signal.SIGKILL)",
        "import os, signal\nos.kill(os.getppid(), signal.SIGSTOP)",
        "import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_NPROC, (0, 0))",
        "import os\nos._exit(0)",
        "s = float('nan')",
        "class Odd(float):\n    def __repr__(self):\n        return 'NaN'\ns = Odd(1.0)",
        "s = 10 ** 400",
        "s = 1e300",
        "s = {'reward': 1.0, 'x' * 101: 1.0}",
        "s = {'reward': 1.0, **{str(i): 1.0 for i in range(99)}}",
        "raise ValueError('\\ud800')",
        "raise SystemExit",
    ],
)
def test_a_response_that_is_run_changes_no_other_score(text: str, tmp_path: Path) -> None:
    script = tmp_path / "runs.py"
    script.write_text(RUNS)
    part = RewardPart.model_validate({"type": "custom", "script": str(script), "timeout_s": 2.0})
    first, after = scored(part, (problem(), text), (problem(8), PLAIN))
    assert first.failed or first.reward in {0.0, 1.0}, first
    assert (after.reward, after.failed, after.note) == (0.25, False, "")


@pytest.mark.parametrize("where", ["/tmp", "/tmp/kept"])
def test_files_of_one_response_are_gone_before_the_next(where: str, tmp_path: Path) -> None:
    script = tmp_path / "runs.py"
    script.write_text(
        "import os\nos.mkdir('/tmp/kept')\nopen('/tmp/kept/own', 'w').write('of the file itself')\n" + RUNS
    )
    part = RewardPart.model_validate({"type": "custom", "script": str(script), "timeout_s": 5.0})
    leave = f"open('{where}/left', 'w').write('x')\ns = 0.5"
    look = (
        f"import os\ns = float(os.path.exists('{where}/left') or open('/tmp/kept/own').read() != 'of the file itself')"
    )
    change = "open('/tmp/kept/own', 'w').write('of another row...')\ns = 0.5"
    found = scored(part, (problem(), leave), (problem(), look), (problem(), change), (problem(), look))
    assert [score.reward for score in found] == [0.5, 0.0, 0.5, 0.0], [score.note for score in found]


def test_what_the_custom_file_keeps_open_is_not_handed_on(tmp_path: Path) -> None:
    script = tmp_path / "runs.py"
    script.write_text("import os, tempfile\nHELD = tempfile.TemporaryFile()\n" + RUNS)
    part = RewardPart.model_validate({"type": "custom", "script": str(script), "timeout_s": 5.0})
    write = "os.pwrite(HELD.fileno(), b'x', 0)\ns = 0.5"
    read = "s = float(len(os.pread(HELD.fileno(), 9, 0)))"
    assert [score.reward for score in scored(part, (problem(), write), (problem(), read))] == [0.5, 0.0]


def test_a_file_that_is_removed_again_costs_no_new_process(tmp_path: Path) -> None:
    script = tmp_path / "runs.py"
    script.write_text("import time\nLOADED = time.monotonic()\n" + RUNS)
    part = RewardPart.model_validate({"type": "custom", "script": str(script), "timeout_s": 5.0})
    text = "import tempfile\nwith tempfile.NamedTemporaryFile() as file:\n    file.write(b'x')\ns = LOADED"
    first, second = scored(part, (problem(), text), (problem(), text))
    assert first.reward == second.reward


def test_what_one_response_leaves_running_is_ended_before_the_next(tmp_path: Path) -> None:
    script = tmp_path / "runs.py"
    script.write_text(RUNS)
    part = RewardPart.model_validate({"type": "custom", "script": str(script), "timeout_s": 5.0})
    count = (
        "import os\ns = 0\nfor number in range(1, 300):\n    try:\n        os.kill(number, 0)\n        s += 1\n"
        "    except ProcessLookupError:\n        pass\n    except PermissionError:\n        s += 1\n"
    )
    leave = (
        "import os, time\nfor _ in range(3):\n    if os.fork() == 0:\n        os.setsid()\n        if os.fork() == 0:\n"
        "            time.sleep(60)\n        os._exit(0)\ntime.sleep(0.2)\n"
    )
    before, left, after = scored(part, (problem(), count), (problem(), leave + count), (problem(), count))
    assert left.reward > before.reward, left.note
    assert after.reward == before.reward


def test_a_verdict_too_many_is_a_failed_sample() -> None:
    line = '1 last {"passed": true, "note": ""}\n'
    write = f"    try:\n        os.write(channel, {line.encode()!r})\n    except OSError:\n        pass\n"
    (score,) = scored(CODE, (problem(tests="import os\nfor channel in range(3, 64):\n" + write), SOLUTION))
    assert score.failed
    assert "malformed answer" in score.note


def test_a_fork_of_the_tests_has_no_verdict_of_its_own() -> None:
    for _ in range(5):
        (score,) = scored(CODE, (problem(tests="assert double(1) == 2\nimport os\nos.fork()"), SOLUTION))
        assert (score.failed, score.reward) == (False, 1.0), score.note


def test_one_episode_s_step_changes_no_other_episode(tmp_path: Path) -> None:
    script = tmp_path / "game.py"
    script.write_text(
        "seen = []\n\ndef step(messages, reply, row):\n    seen.append(reply)\n    exec(reply)\n"
        "    return {'messages': 'on', 'reward': len(seen)}\n"
    )
    given = {"base_model": "demo", "train_file": "demo:say_train", "environment": str(script)}
    config = load_rl_settings(None, given).config
    forged = '{"reward":1,"done":true,"parts":{},"state":null,"messages":['
    replies = [
        "pass",
        "import os; os._exit(3)",
        "import sys; sys.modules['__main__'].answered = None",
        # 4 MB of messages that are none: each would be told of.
        WRITES.format(f"b'{forged}' + b'1,' * 2000000 + b'1]}}'") + "\nos._exit(0)",
        "import sys; sys.modules['__main__'].answered = lambda v, s: {'messages': [], 'reward': 0.0, 'done': False,"
        " 'state': None, 'parts': {}}",
        "pass",
    ]

    async def play() -> list[str | float]:
        scorers = Scorers((), max_tokens=9)
        environment = make_environment(config, scorers)
        assert environment is not None
        found: list[str | float] = []
        try:
            for reply in replies:
                episode = Episode(await environment.reset(problem(), 0))
                try:
                    found.append((await environment.step(problem(), episode, Response(reply, 1), 0)).score.reward)
                except ScoringFailedError as error:
                    found.append(str(error))
        finally:
            await environment.close()
            await scorers.close()
        return found

    before = psutil.Process().memory_info().rss
    first, ended, broken, many, silent, last = asyncio.run(play())
    assert psutil.Process().memory_info().rss - before < 256 << 20
    assert (first, last) == (1.0, 1.0)
    assert ended == "line 7: environment: step: its process ended early (status 3)"
    assert "TypeError" in str(broken)
    assert "malformed answer (messages: Value error, 2000001 items, 1000 at most)" in str(many)
    assert "malformed answer (answer: Value error, neither messages nor done)" in str(silent)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"", "another answer"),
        (b"\n", "another answer"),
        (b"not json\n", "another answer"),
        (b'4 again {"score": 1.0}\n', "another answer"),
        (b'05 again {"score": 1.0}\n', "another answer"),
        (b'5 sometimes {"score": 1.0}\n', "another answer"),
        (b"5 again \n", "malformed"),
        (b"5 again [1.0]\n", "malformed"),
        (b"5 again {}\n", r"malformed answer \(score: Field required"),
        (b'5 again {"score": "1"}\n', "malformed"),
        (b'5 again {"score": true}\n', "malformed"),
        (b'5 again {"score": null}\n', "malformed"),
        (b'5 again {"score": NaN}\n', "malformed"),
        (b'5 again {"score": -Infinity}\n', "malformed"),
        (b'5 again {"score": 1e400}\n', "malformed"),
        (b'5 again {"score": 1' + b"0" * 400 + b"}\n", "malformed"),
        (b'5 again {"score": 1e19}\n', "not a number up to 1e\\+18"),
        (b'5 again {"score": 1.0, "id": 6}\n', "malformed"),
        (b'5 again {"score": 1.0, "parts": {"a": "b"}}\n', "malformed"),
        (b'5 again {"score": 1.0, "note": "\\ud800"}\n', "malformed"),
        (b'5 again {"score": 1.0} {"score": 1.0}\n', "malformed"),
        (b"5 again " + b"[" * 100_000 + b"\n", "malformed"),
        (b'5 again {"error": 1}\n', "malformed"),
        (b"\xff\xfe again {}\n", "another answer"),
        (b"5 again \xff\n", "malformed"),
    ],
)
def test_what_is_no_answer_is_refused(line: bytes, problem: str) -> None:
    with pytest.raises(ScoringFailedError, match=problem):
        read_answer(line, 5, Scored)


def test_an_answer_says_whether_its_process_may_be_asked_again() -> None:
    assert read_answer(b'5 again {"score": 1}\n', 5, Scored) == (Scored(score=1.0), True)
    assert read_answer(b'5 last {"score": 1.5, "parts": {"a": 2}}\n', 5, Scored)[1] is False
    with pytest.raises(RefusedError, match="it broke") as refused:
        read_answer(b'5 again {"error": "it broke"}\n', 5, Scored)
    assert refused.value.again


def test_scores_whose_sum_is_too_large_are_a_failed_sample(tmp_path: Path) -> None:
    script = tmp_path / "large.py"
    script.write_text(f"def reward(prompt, response, row):\n    return {LARGEST_SCORE}\n")
    part = RewardPart.model_validate({"type": "custom", "script": str(script), "weight": 1e10})
    (score,) = scored(part, (problem(), "x"))
    assert (score.failed, score.note) == (True, "the weighted sum is not a number up to 1e+18")


def test_rows_whose_tests_are_no_tests_are_refused() -> None:
    for tests in ({"a": 1}, [1, 2], ["assert 1", {"output": "1"}], [{"input": "1"}], 7):
        assert isinstance(missing_key({"tests": tests}, [CODE]), DataError), tests
    for tests in ("assert 1", ["assert 1"], [{"output": 1}], [{"input": "1", "output": "2"}]):
        assert missing_key({"tests": tests, "entry_point": "f"}, [CODE]) is None
    assert isinstance(missing_key({"tests": "assert 1", "entry_point": ["f"]}, [CODE]), DataError)


def test_a_row_that_cannot_be_passed_on_is_a_failed_sample(tmp_path: Path) -> None:
    script = tmp_path / "any.py"
    script.write_text("def reward(prompt, response, row):\n    return 1\n")
    part = RewardPart.model_validate({"type": "custom", "script": str(script)})
    (score,) = scored(part, (problem(when=b"bytes"), "x"))
    assert (score.failed, "cannot be passed on as JSON" in score.note) == (True, True)


def test_without_a_sandbox_it_works_if_allowed_and_still_sees_no_keys(
    monkeypatch: pytest.MonkeyPatch, open_folder: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(modes, "isolation", lambda: modes.Isolation(None, "tried for a test"))
    honest = problem(tests=HONEST)
    environment = problem(tests="import os\nraise AssertionError(repr(dict(os.environ)))")
    found = scored(
        CODE,
        (honest, SOLUTION),
        (honest, WRONG),
        (environment, SOLUTION),
        (problem(tests="exit()"), SOLUTION),
        allow_unsandboxed=True,
    )
    assert [score.reward for score in found] == [1.0, 0.0, 0.0, 0.0]
    assert CANARY not in found[2].note
    script = tmp_path / "runs.py"
    script.write_text(RUNS)
    part = RewardPart.model_validate({"type": "custom", "script": str(script), "timeout_s": 5.0})
    first, after = scored(part, (problem(), "reward = 1"), (problem(), PLAIN), allow_unsandboxed=True)
    assert (first.reward, after.reward) == (1.0, 0.25)


@pytest.mark.skipif(modes._try("bubblewrap") is not None, reason="no bubblewrap here")
@pytest.mark.parametrize("name", ["environment", "writes outside", "reads the home folder", "loops"])
def test_bubblewrap_shuts_in_alike(name: str, open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modes, "isolation", lambda: modes.Isolation("bubblewrap"))
    test_a_row_s_tests_can_do_no_harm_and_change_no_other_score(name, open_folder)
    test_no_kind_of_socket_leads_outside()


@pytest.fixture
def environment_below_tmp(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Path]:
    """A project in /tmp that is its own virtual environment."""
    (open_folder / "lib").mkdir()
    monkeypatch.setattr(modes.sys, "prefix", str(open_folder))
    modes._system_binds.cache_clear()
    yield open_folder
    modes._system_binds.cache_clear()


def test_of_a_project_that_is_an_environment_only_the_interpreter_is_seen(environment_below_tmp: Path) -> None:
    folder = str(environment_below_tmp)
    tests = f"import os\nassert os.listdir({folder!r}) == ['lib'], os.listdir({folder!r})\nassert double(1) == 2"
    assert scored(CODE, (problem(tests=tests), SOLUTION))[0].note == ""


def test_an_environment_below_tmp_is_not_taken_for_files_that_were_left(
    environment_below_tmp: Path, tmp_path: Path
) -> None:
    script = tmp_path / "loaded.py"
    script.write_text(
        "import time\nLOADED = time.monotonic()\n\ndef reward(prompt, response, row):\n    return LOADED\n"
    )
    part = RewardPart.model_validate({"type": "custom", "script": str(script)})

    async def run() -> set[float]:
        scorers = Scorers([part], max_tokens=9)
        found: set[float] = set()
        for number in range(3):
            (environment_below_tmp / "lib" / f"{number}.py").write_text("")
            found.add((await scorers.score_group(problem(), [Response("x", 1)]))[0].reward)
        await scorers.close()
        return found

    assert len(asyncio.run(run())) == 1
