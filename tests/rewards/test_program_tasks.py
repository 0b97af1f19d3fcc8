"""Small tasks as HumanEval has them: what solves one scores 1, whatever its result is made of; what does not, 0."""

import asyncio
from typing import NamedTuple

import pytest

from sota_ml_researcher.rewards.programs import run_tests
from sota_ml_researcher.rewards.sandbox.modes import Limits, isolation

pytestmark = pytest.mark.skipif(isolation().mode is None, reason=f"no isolation here: {isolation().reason}")


class Task(NamedTuple):
    """A function to write, what it is checked by, a program that does it and one that does not."""

    entry: str
    checks: str
    right: str
    wrong: str


TASKS = [
    Task(
        "running_max",
        "assert candidate([1, 3, 2, 5]) == [1, 3, 3, 5]\nassert candidate([]) == []",
        "from itertools import accumulate\ndef running_max(xs): return list(accumulate(xs, max))",
        "def running_max(xs): return sorted(xs)",
    ),
    Task(
        "letters",
        "assert candidate('aab') == {'a': 2, 'b': 1}\nassert candidate('') == {}",
        "from collections import Counter\ndef letters(s): return Counter(s)",
        "def letters(s): return dict.fromkeys(s, 1)",
    ),
    Task(
        "by_length",
        "assert candidate(['a', 'bb', 'c']) == {1: ['a', 'c'], 2: ['bb']}",
        "from collections import defaultdict\n"
        "def by_length(words):\n    out = defaultdict(list)\n    for w in words: out[len(w)].append(w)\n    return out",
        "def by_length(words): return {len(w): [w] for w in words}",
    ),
    Task(
        "mean",
        "from fractions import Fraction\nassert candidate([1, 2]) == Fraction(3, 2)\nassert candidate([4]) == 4",
        "from fractions import Fraction\ndef mean(xs): return Fraction(sum(xs), len(xs))",
        "def mean(xs): return sum(xs) // len(xs)",
    ),
    Task(
        "price",
        "from decimal import Decimal\nassert candidate('19.99', 3) == Decimal('59.97')",
        "import decimal\ndef price(each, n): return decimal.Decimal(each) * n",
        "def price(each, n): return float(each) * n",
    ),
    Task(
        "evens",
        "assert list(candidate(7)) == [0, 2, 4, 6]\nassert len(candidate(4)) == 2",
        "def evens(n): return range(0, n, 2)",
        "def evens(n): return range(0, n)",
    ),
    Task(
        "rotate",
        "board = [[1, 2], [3, 4]]\nassert candidate(board) is None\nassert board == [[3, 1], [4, 2]]",
        "def rotate(b): b[:] = [list(row) for row in zip(*b[::-1])]",
        "def rotate(b): return [list(row) for row in zip(*b[::-1])]",
    ),
    Task(
        "apply_twice",
        "assert candidate(lambda x: x * x, 3) == 81\nassert candidate(str.upper, 'a') == 'A'",
        "def apply_twice(f, x): return f(f(x))",
        "def apply_twice(f, x): return f(x)",
    ),
    Task(
        "countdown",
        "assert list(candidate(3)) == [3, 2, 1]\nassert next(candidate(5)) == 5",
        "def countdown(n):\n    while n:\n        yield n\n        n -= 1",
        "def countdown(n):\n    while n:\n        n -= 1\n        yield n",
    ),
    Task(
        "extremes",
        "low, high = candidate([3, 1, 2])\nassert (low, high) == (1, 3)\nassert candidate([2]) == (2, 2)",
        "from collections import namedtuple\nPair = namedtuple('Pair', 'low high')\n"
        "def extremes(xs): return Pair(min(xs), max(xs))",
        "def extremes(xs): return max(xs), min(xs)",
    ),
    Task(
        "unique",
        "assert candidate([1, 1, 2]) == {1, 2}\nassert candidate([]) == set()",
        "def unique(xs): return frozenset(xs)",
        "def unique(xs): return list(xs)",
    ),
    Task(
        "distance",
        "assert abs(candidate((0, 0), (3, 4)) - 5) < 1e-9\nassert math.isclose(candidate((0, 0), (1, 1)), 2**0.5)",
        "import math\ndef distance(a, b): return math.dist(a, b)",
        "import math\ndef distance(a, b): return abs(a[0] - b[0]) + abs(a[1] - b[1])",
    ),
    Task(
        "parse",
        "try:\n    candidate('x')\nexcept ValueError:\n    pass\nelse:\n    raise AssertionError('no error')\n"
        "assert candidate('7') == 7",
        "def parse(s): return int(s)",
        "def parse(s): return int(s) if s.isdigit() else None",
    ),
    Task(
        "depth",
        "assert candidate(3) == 3\nassert candidate(20000) == 20000",
        "import sys\nsys.setrecursionlimit(10**6)\ndef depth(n): return 0 if n == 0 else 1 + depth(n - 1)",
        "def depth(n): return 0 if n == 0 else 1 + depth(n - 1)",
    ),
    Task(
        "squares",
        "assert candidate([1, 2, 3]) == [1, 4, 9]",
        "import threading\ndef squares(xs):\n    out = [0] * len(xs)\n"
        "    def work(i): out[i] = xs[i] ** 2\n"
        "    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(xs))]\n"
        "    for t in threads: t.start()\n    for t in threads: t.join()\n    return out",
        "def squares(xs): return [x * 2 for x in xs]",
    ),
    Task(
        "encode",
        "assert candidate('é') == b'\\xc3\\xa9'\nassert candidate('a') == b'a'",
        "def encode(s): return s.encode()",
        "def encode(s): return s",
    ),
    Task(
        "root",
        "assert candidate(-1) == 1j\nassert candidate(4) == 2",
        "import cmath\ndef root(x): return complex(0, 1) if x == -1 else cmath.sqrt(x)",
        "def root(x): return abs(x) ** 0.5",
    ),
    Task(
        "tomorrow",
        "import datetime\nassert candidate(2024, 2, 28) == datetime.date(2024, 2, 29)",
        "from datetime import date, timedelta\ndef tomorrow(y, m, d): return date(y, m, d) + timedelta(days=1)",
        "from datetime import date\ndef tomorrow(y, m, d): return date(y, m, d)",
    ),
    Task(
        "factorial",
        "assert candidate(5) == 120\nassert candidate(2000) % 10**9 == 0\nassert candidate(20) == 2432902008176640000",
        "from math import factorial",
        "def factorial(n): return n * (n - 1)",
    ),
    Task(
        "merge",
        "a = {'x': 1}\nassert candidate(a, {'y': 2}) == {'x': 1, 'y': 2}\nassert a == {'x': 1}",
        "from collections import OrderedDict\n"
        "def merge(a, b):\n    out = OrderedDict(a)\n    out.update(b)\n    return out",
        "def merge(a, b):\n    a.update(b)\n    return a",
    ),
    Task(
        "smallest",
        "assert candidate([3.0, float('inf')]) == [3.0, float('inf')]\nassert candidate([]) == []",
        "import heapq\ndef smallest(xs): return heapq.nsmallest(2, xs)",
        "def smallest(xs): return sorted(xs)[:1]",
    ),
]


@pytest.mark.parametrize("task", TASKS, ids=[task.entry for task in TASKS])
def test_what_solves_a_task_scores_and_what_does_not_scores_nothing(task: Task) -> None:
    body = "".join(f"    {line}\n" for line in task.checks.split("\n"))
    tests = f"def check(candidate):\n{body}"

    async def both() -> list[str]:
        given = {"mode": isolation().mode or "plain", "limits": Limits(), "wall_s": 20.0, "entry": task.entry}
        return [await run_tests(code, tests, **given) for code in (task.right, task.wrong)]

    right, wrong = asyncio.run(both())
    assert right == ""
    assert wrong != ""
