"""What model-written code must not be able to do. Every program here is run; none may do harm or earn reward."""

import asyncio
import marshal
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sota_ml_researcher.core.errors import ConfigError
from sota_ml_researcher.rewards.programs import EXCHANGE, PROGRAM, code_in, run_tests
from sota_ml_researcher.rewards.sandbox import modes
from sota_ml_researcher.rewards.sandbox.modes import Isolation, Limits, isolation, require_isolation, sandboxed

pytestmark = pytest.mark.skipif(isolation().mode is None, reason=f"no isolation here: {isolation().reason}")
LIMITS = Limits(cpu_s=2)
TESTS = "assert add(1, 2) == 3\nassert add(-1, 1) == 0"
GOOD = "def add(a, b):\n    return a + b\n"


def run(code: str, tests: object = TESTS, wall_s: float = 8.0) -> str:
    return asyncio.run(run_tests(code, tests, mode=isolation().mode or "plain", limits=LIMITS, wall_s=wall_s))


BRANCHES = [
    pytest.param(mode, marks=pytest.mark.skipif(reason is not None, reason=f"{mode}: {reason}"))
    for mode, reason in ((mode, modes._try(mode)) for mode in ("namespaces", "bubblewrap"))
]


def inside(code: str, wall_s: float = 10.0, mode: modes.Mode | None = None) -> subprocess.CompletedProcess[str]:
    """Run code as a program in the sandbox and show what it printed."""
    shut_in = sandboxed(mode or isolation().mode or "plain", PROGRAM, [], limits=LIMITS, modules=[EXCHANGE])
    request = marshal.dumps({"mode": "program", "code": code})
    done = subprocess.run(
        shut_in.argv, input=request, capture_output=True, timeout=wall_s, check=False, **shut_in.options
    )
    out = done.stdout.decode().removeprefix('{"ready": true}\n')
    return subprocess.CompletedProcess(done.args, done.returncode, out, done.stderr.decode())


def test_a_right_program_passes_and_a_wrong_one_does_not() -> None:
    assert run(GOOD) == ""
    assert run("def add(a, b):\n    return a - b\n").startswith("a test failed")
    assert run("def add(a, b:\n").startswith(("SyntaxError", "ProgramFailedError"))


def test_classes_iterators_and_exceptions_cross_to_the_tests() -> None:
    code = (
        "class Counter:\n"
        "    def __init__(self, n):\n        self.n = n\n"
        "    def up(self):\n        self.n += 1\n        return self.n\n"
        "def squares(n):\n    return (i * i for i in range(n))\n"
        "def half(n):\n"
        "    if n % 2:\n        raise ValueError('odd')\n"
        "    return n // 2\n"
    )
    tests = (
        "c = Counter(3)\nassert c.up() == 4 and c.n == 4\n"
        "assert list(squares(4)) == [0, 1, 4, 9]\n"
        "try:\n    half(3)\n    raise AssertionError('no error')\nexcept ValueError:\n    pass\n"
        "from solution import half as h\nassert h(8) == 4"
    )
    assert run(code, tests) == ""


def test_whole_programs_are_compared_by_their_output() -> None:
    examples = [{"input": "2 3", "output": "5"}, {"input": "1 1", "output": "2"}]
    assert run("a, b = map(int, input().split())\nprint(a + b)", examples) == ""
    assert "example 1: another output" in run("print(5)\nprint(5)", examples)


@pytest.mark.parametrize(
    "cheat",
    [
        "import os\nos._exit(0)",
        "import sys\nsys.exit(0)",
        "raise SystemExit(0)",
        "class Yes:\n    def __eq__(self, other):\n        return True\ndef add(a, b):\n    return Yes()",
        "class Three(int):\n    def __eq__(self, other):\n        return True\ndef add(a, b):\n    return Three(9)",
        "import builtins\nbuiltins.AssertionError = ValueError\ndef add(a, b):\n    raise AssertionError",
        "import sys\nsys.modules['__main__'].__dict__.clear()\ndef add(a, b):\n    return 0",
        "import os, json\n"
        "for fd in range(3, 10):\n"
        '    try:\n        os.write(fd, b\'{"names": ["add"]}\\n\' + b\'{"value": {"plain": "3"}}\\n\' * 9)\n'
        "    except OSError:\n        pass\n"
        "def add(a, b):\n    return 7",
        "import gc\n"
        "def add(a, b):\n"
        "    seen = [o for o in gc.get_objects() if isinstance(o, str) and 'assert' in o]\n"
        "    return seen[0] if seen else 99",
        "import os\ndef add(a, b):\n    os.kill(os.getppid(), 9)\n    return 3",
        "def add(a, b):\n    while True:\n        pass",
        "import time\ndef add(a, b):\n    time.sleep(1000)",
        "def add(a, b):\n    return 'x' * 10**9",
        "print('PASSED\\n' * 10**6)\ndef add(a, b):\n    return 4",
        "open('/sandbox/tests.py', 'w').write('')\ndef add(a, b):\n    return 3",
    ],
)
def test_cheats_earn_nothing(cheat: str) -> None:
    assert run(cheat, wall_s=4.0) != ""


def test_neither_keys_nor_home_nor_other_files_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("tml-secret")
    secret.chmod(0o644)
    monkeypatch.setenv("TINKER_API_KEY", "tml-secret")
    code = (
        "import os, pathlib\n"
        "print(dict(os.environ))\n"
        f"for path in ({str(secret)!r}, {str(Path.home())!r}, '/proc/1/environ', '/etc/shadow', '/etc/passwd'):\n"
        "    try:\n"
        "        p = pathlib.Path(path)\n"
        "        print(path, p.read_text() if p.is_file() else [f for f in os.listdir(p) if f != '.pyenv'])\n"
        "    except OSError as e:\n        print(path, type(e).__name__)\n"
        f"os.symlink({str(secret)!r}, '/tmp/link')\n"
        "try:\n    print(open('/tmp/link').read())\nexcept OSError as e:\n    print('link', type(e).__name__)\n"
    )
    out = inside(code).stdout
    assert "tml-secret" not in out
    assert "link FileNotFoundError" in out
    assert f"{secret} FileNotFoundError" in out


def test_there_is_no_network() -> None:
    code = (
        "import socket\n"
        "for where in (('127.0.0.1', 80), ('1.1.1.1', 53)):\n"
        "    try:\n        socket.create_connection(where, 2)\n        print('connected')\n"
        "    except OSError as e:\n        print('refused', e.errno)\n"
    )
    out = inside(code).stdout
    assert "connected" not in out
    assert out.count("refused") == 2


def test_nothing_outside_can_be_written(tmp_path: Path) -> None:
    target = tmp_path / "written"
    tmp_path.chmod(0o777)
    code = (
        "import os, sys\n"
        f"for path in ({str(target)!r}, '/written', '/usr/written', sys.prefix + '/written', '/sandbox/written'):\n"
        "    try:\n        open(path, 'w').close()\n        print('wrote', path)\n"
        "    except OSError:\n        pass\n"
        "open('/tmp/mine', 'w').write('x' * 1000)\n"
        "try:\n    open('/tmp/big', 'w').write('x' * (64 << 20))\n    print('wrote big')\n"
        "except OSError:\n    pass\n"
        "print('done')\n"
    )
    done = inside(code)
    assert "wrote" not in done.stdout, done.stdout
    assert not target.exists()


def test_a_fork_bomb_and_a_memory_hog_end_at_their_limits() -> None:
    before = len(list(Path("/proc").iterdir()))
    bomb = "import os, time\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        time.sleep(0.01)\n"
    with pytest.raises(subprocess.TimeoutExpired):
        inside(bomb, wall_s=1.5)
    time.sleep(0.5)
    assert len(list(Path("/proc").iterdir())) < before + 60
    hog = inside("x = bytearray(2 << 30)\nprint('got it')")
    assert "got it" not in hog.stdout


def test_killing_the_worker_s_process_is_out_of_reach() -> None:
    code = (
        f"import os\ntry:\n    os.kill({os.getpid()}, 0)\n    print('seen')\nexcept OSError as e:\n    print(e.errno)\n"
    )
    assert "seen" not in inside(code).stdout


def test_without_isolation_code_is_refused_unless_the_user_insists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modes, "isolation", lambda: Isolation(None, "namespaces: not permitted"))
    with pytest.raises(ConfigError, match=r"code cannot be isolated on this machine .*allow_unsandboxed: true"):
        require_isolation(allow_unsandboxed=False)
    assert require_isolation(allow_unsandboxed=True) == "plain"
    assert asyncio.run(run_tests(GOOD, TESTS, mode="plain", limits=LIMITS, wall_s=8.0)) == ""


def test_the_last_fenced_block_is_the_program() -> None:
    assert code_in("First:\n```python\na = 1\n```\nBetter:\n```python\na = 2\n```\nDone.").strip() == "a = 2"
    assert code_in("def f(): pass") == "def f(): pass"


def test_the_loop_is_free_while_programs_run() -> None:
    async def both() -> float:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticking = asyncio.create_task(tick())
        from sota_ml_researcher.rewards.problems import Problem
        from sota_ml_researcher.rewards.reward_config import RewardPart
        from sota_ml_researcher.rewards.scorers import Response, Scorers

        scorers = Scorers([RewardPart.model_validate({"type": "code", "timeout_s": 1.0})], max_tokens=100)
        problem = Problem(1, ({"role": "user", "content": "add"},), {"tests": TESTS})
        (score,) = await scorers.score_group(problem, [Response("def add(a, b):\n    while True: pass", 9)])
        ticking.cancel()
        await scorers.close()
        assert score.reward == 0.0
        return ticks

    assert asyncio.run(both()) > 20


def test_a_private_umask_takes_nothing_from_the_sandbox() -> None:
    code = "import os; os.umask({}); from sota_ml_researcher.rewards.sandbox.modes import isolation; print(isolation())"
    modes = [
        subprocess.run([sys.executable, "-c", code.format(mask)], capture_output=True, text=True, check=True).stdout
        for mask in (0o022, 0o077)
    ]
    assert modes[0] == modes[1] == f"{isolation()}\n"


# What each call gives where it is allowed; a program is refused all of them. The numbers are those of x86_64.
CALLS = """
import ctypes, os, platform, socket, struct
libc = ctypes.CDLL(None, use_errno=True)
x86 = platform.machine() == "x86_64"
done = []
def call(name, number, *args):
    if number is not None and libc.syscall(number, *args) >= 0:
        done.append(name)
def other(name, number, *args):
    call(name, number if x86 else None, *args)
buffer = ctypes.create_string_buffer(256)
NEWUSER = 0x10000000
other("unshare user", 272, NEWUSER)
other("unshare net", 272, 0x40000000)
other("unshare mount", 272, 0x20000)
other("clone user", 56, NEWUSER | 17, 0, 0, 0, 0)
call("clone3", 435, ctypes.byref(struct and (ctypes.c_uint64 * 11)(NEWUSER)), 88)
other("setns", 308, 0, 0)
other("mount", 165, b"none", b"/tmp", b"tmpfs", 0, None)
other("umount", 166, b"/tmp", 2)
other("pivot_root", 155, b"/tmp", b"/tmp")
other("chroot", 161, b"/tmp")
other("ptrace", 101, 0, 0, 0, 0)
other("process_vm_readv", 310, os.getppid(), 0, 0, 0, 0, 0)
other("add_key", 248, b"user", b"name", b"value", 5, -3)
other("keyctl", 250, 0, -3, 1)
other("request_key", 249, b"user", b"name", 0, -3)
other("shmget", 29, 0, 4096, 0o1600)
other("msgget", 68, 0, 0o1600)
other("semget", 64, 0, 1, 0o1600)
other("bpf", 321, 0, buffer, 128)
other("userfaultfd", 323, 1)
other("perf_event_open", 298, buffer, 0, -1, -1, 0)
other("memfd_create", 319, b"name", 0)
call("memfd_secret", 447, 0)
call("io_uring_setup", 425, 4, buffer)
call("pidfd_getfd", 438, 0, 0, 0)
call("fsopen", 430, b"tmpfs", 0)
call("open_tree", 428, -100, b"/", 1)
other("mknod", 133, b"/tmp/device", 0o60600, 0x800)
other("setuid", 105, 0)
other("prlimit of another", 302, os.getppid(), 7, buffer, 0)
for path in ("/proc/self/environ", "/proc/1/environ", "/etc/shadow", "/etc/passwd", "/sys", "/home", "/var"):
    if os.path.exists(path):
        done.append(path)
for number in (1, os.getppid()):
    try:
        os.kill(number, 0)
        if number == 1 and os.getppid() == 1:
            continue
        done.append(f"kill {number}")
    except OSError:
        pass
for place in ("/", "/usr", "/sandbox", "/dev", "/etc", "/bin"):
    try:
        open(place + "/written", "w")
        done.append("wrote " + place)
    except OSError:
        pass
for fd in range(3, 64):
    try:
        os.fstat(fd)
        done.append(f"descriptor {fd}") if os.isatty(fd) else None
    except OSError:
        pass
print(done)
"""


@pytest.mark.parametrize("mode", BRANCHES)
def test_no_call_leads_out_of_a_sandbox_of_either_kind(mode: modes.Mode) -> None:
    done = inside(CALLS, mode=mode)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


@pytest.mark.parametrize("mode", BRANCHES)
def test_programs_are_scored_alike_in_a_sandbox_of_either_kind(mode: modes.Mode) -> None:
    assert asyncio.run(run_tests(GOOD, TESTS, mode=mode, limits=LIMITS, wall_s=8.0)) == ""
    wrong = "def add(a, b):\n    return a - b\n"
    assert asyncio.run(run_tests(wrong, TESTS, mode=mode, limits=LIMITS, wall_s=8.0)) != ""
    examples = [{"input": "2", "output": "4"}]
    assert (
        asyncio.run(run_tests("print(2 * int(open(0).read()))", examples, mode=mode, limits=LIMITS, wall_s=8.0)) == ""
    )


@pytest.mark.parametrize("mode", BRANCHES)
@pytest.mark.parametrize(
    "hold",
    [
        "x = bytearray(300 << 20)",
        "import mmap\n        x = mmap.mmap(-1, 300 << 20)",
    ],
)
def test_processes_together_hold_no_more_than_the_limit(mode: modes.Mode, hold: str) -> None:
    """Each holds less than the limit of one process; before there was a limit of their sum, all of them were left."""
    code = (
        "import os, time\nready, done = os.pipe()\nfor _ in range(4):\n    if os.fork() == 0:\n"
        f"        {hold}\n        for place in range(0, len(x), 4096):\n            x[place] = 1\n"
        "        os.write(done, b'x')\n        time.sleep(60)\n"
        "for _ in range(4):\n    os.read(ready, 1)\ntime.sleep(60)\ndef add(a, b):\n    return a + b\n"
    )
    note = asyncio.run(run_tests(code, TESTS, mode=mode, limits=Limits(cpu_s=30), wall_s=60.0))
    assert note == "ProgramFailedError: the program ended early"


def test_a_program_may_hold_what_it_is_allowed() -> None:
    code = "x = bytearray(400 << 20)\nfor i in range(0, len(x), 4096):\n    x[i] = 1\n" + GOOD
    assert asyncio.run(run_tests(code, TESTS, mode=isolation().mode or "plain", limits=Limits(), wall_s=20.0)) == ""
