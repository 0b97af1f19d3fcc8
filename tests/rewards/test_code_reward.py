"""Programs and their tests: what is right scores 1 whatever its results are made of, what is wrong scores 0."""

import asyncio

import pytest

from sota_ml_researcher.rewards.process_pool import ScoringFailedError
from sota_ml_researcher.rewards.programs import code_in, program_in, run_tests, same_output
from sota_ml_researcher.rewards.response_text import shown
from sota_ml_researcher.rewards.sandbox.modes import Limits, isolation

pytestmark = pytest.mark.skipif(isolation().mode is None, reason=f"no isolation here: {isolation().reason}")


def run(code: str, tests: object, entry: str | None = None, wall_s: float = 20.0) -> str:
    limits = Limits(cpu_s=10)
    return asyncio.run(
        run_tests(code, tests, mode=isolation().mode or "plain", limits=limits, wall_s=wall_s, entry=entry)
    )


RIGHT = {
    "a Counter": (("from collections import Counter\ndef f(s): return Counter(s)"), "assert f('aab')=={'a':2,'b':1}"),
    "a Counter beside Python's own": (
        ("from collections import Counter\ndef f(s): return Counter(s)"),
        "assert f('aab')==Counter('aab')",
    ),
    "named tuples": (
        (
            "from collections import namedtuple\n"
            "P=namedtuple('P','x y')\n"
            "def f(): return P(1,2)\n"
            "def g(): return [P(1,2),P(3,4)]"
        ),
        (
            "p=f()\n"
            "assert p==(1,2) and p.x==1 and p[1]==2 and (1,2)==p\n"
            "assert g()==[(1,2),(3,4)]\n"
            "x,y=p\n"
            "assert y==2\n"
            "assert isinstance(p,tuple)\n"
            "assert p==P(1,2)\n"
            "assert p._asdict()=={'x':1,'y':2}"
        ),
    ),
    "sets, bytes, complex and infinite numbers": (
        "def f(): return {1,2},frozenset([3]),b'x',1+2j,bytearray(b'q'),float('inf'),[float('nan')]",
        (
            "a,b,c,d,e,g,h=f()\n"
            "assert a=={1,2} and b==frozenset([3]) and c==b'x' and d==1+2j\n"
            "assert e==b'q' and g==float('inf') and h[0]!=h[0]"
        ),
    ),
    "data classes": (
        ("from dataclasses import dataclass\n@dataclass\nclass P:\n  x:int\n  y:int=0\ndef f(): return P(1,2)\n"),
        (
            "assert f()==P(1,2)\n"
            "assert f()!=P(1,3)\n"
            "assert [f()]==[P(1,2)]\n"
            "assert repr(f())=='P(x=1, y=2)'\n"
            "assert isinstance(f(),P)"
        ),
    ),
    "data classes in order": (
        (
            "from __future__ import annotations\n"
            "from dataclasses import dataclass\n"
            "@dataclass(order=True)\n"
            "class P:\n"
            "  x:int\n"
            "def f(): return P(1)\n"
            ""
        ),
        ("assert f()==P(1)\nassert P(1)<P(2)\nassert sorted([P(2),P(1)])==[P(1),P(2)]\nassert max(P(3),P(2)).x==3"),
    ),
    "an argument sorted in place": ("def f(a): a.sort()", ("a=[3,1,2]\nf(a)\nassert a==[1,2,3]")),
    "nested arguments changed": (
        ("def f(b):\n for r in b: r.reverse()\n b.append([9])"),
        ("b=[[1,2],[3,4]]\nr0=b[0]\nassert f(b) is None\nassert b==[[2,1],[4,3],[9]]\nassert r0==[2,1]"),
    ),
    "an argument handed back": (
        ("def f(d,s):\n d['x']=s\n s.add(5)\n return d"),
        ("d={};s={1}\nassert f(d,s) is d\nassert d=={'x':{1,5}} and d['x'] is s"),
    ),
    "functions as arguments": (
        (
            "def f(g,x): return g(g(x))\n"
            "def k(xs): return sorted(xs,key=lambda v:-v)\n"
            "def srt(xs,key): return sorted(xs,key=key)"
        ),
        (
            "assert f(lambda v:v+1,3)==5\n"
            "assert k([1,3,2])==[3,2,1]\n"
            "assert srt(['bb','a'],len)==['a','bb']\n"
            "assert f(abs,-3)==3"
        ),
    ),
    "a generator": (
        ("def f():\n yield 1\n yield 2"),
        (
            "assert list(f())==[1,2]\n"
            "g=f()\n"
            "assert next(g)==1 and next(g)==2\n"
            "assert next(g,None) is None\n"
            "try:\n"
            " next(g)\n"
            " assert False\n"
            "except StopIteration: pass\n"
            "assert sum(f())==3"
        ),
    ),
    "a class of one's own": (
        (
            "class S:\n"
            " def __init__(self): self.i=[]\n"
            " def push(self,x): self.i.append(x)\n"
            " def pop(self): return self.i.pop()\n"
            " def __len__(self): return len(self.i)\n"
            " def __contains__(self,x): return x in self.i\n"
            " def __iter__(self): return iter(self.i)\n"
            " def __getitem__(self,k): return self.i[k]\n"
            " @property\n"
            " def top(self): return self.i[-1]\n"
            " @staticmethod\n"
            " def make(): return S()"
        ),
        (
            "s=S()\n"
            "s.push(1);s.push(2)\n"
            "assert len(s)==2 and s.pop()==2 and 1 in s and 7 not in s and list(s)==[1] and s[0]==1 and s.top==1\n"
            "assert len(S.make())==0\n"
            "assert s.i==[1]\n"
            "assert isinstance(s,S)\n"
            "try:\n"
            " s[5]\n"
            " assert 0\n"
            "except IndexError: pass\n"
            "assert not S.make()"
        ),
    ),
    "a class with operators": (
        (
            "class V:\n"
            " def __init__(s,x,y): s.x=x;s.y=y\n"
            " def __add__(s,o): return V(s.x+o.x,s.y+o.y)\n"
            " def __mul__(s,k): return V(s.x*k,s.y*k)\n"
            " __rmul__=__mul__\n"
            " def __eq__(s,o): return (s.x,s.y)==(o.x,o.y)\n"
            " def __abs__(s): return (s.x**2+s.y**2)**.5\n"
            " def __neg__(s): return V(-s.x,-s.y)\n"
            " def __repr__(s): return f'V({s.x}, {s.y})'\n"
            " def __hash__(s): return hash((s.x,s.y))\n"
            " def __bool__(s): return bool(s.x or s.y)"
        ),
        (
            "assert V(1,2)+V(3,4)==V(4,6)\n"
            "assert V(1,2)*3==V(3,6)==3*V(1,2)\n"
            "assert abs(V(3,4))==5\n"
            "assert (-V(1,2)).x==-1\n"
            "assert str(V(1,2))=='V(1, 2)'\n"
            "assert len({V(1,2),V(1,2)})==1\n"
            "assert not V(0,0)\n"
            "assert V(1,2)!=V(2,1)"
        ),
    ),
    "an error of one's own": (
        (
            "class InsufficientFunds(ValueError):\n"
            " def __init__(self,need):\n"
            "  super().__init__(f'need {need}')\n"
            "  self.need=need\n"
            "class A:\n"
            " def w(self,n): raise InsufficientFunds(n)"
        ),
        (
            "try:\n"
            " A().w(3)\n"
            " assert False\n"
            "except InsufficientFunds as e:\n"
            " assert e.need==3 and str(e)=='need 3'\n"
            "try:\n"
            " A().w(3)\n"
            " assert False\n"
            "except ValueError: pass\n"
            "assert issubclass(InsufficientFunds,ValueError)"
        ),
    ),
    "a built-in error": (
        ("def f(x):\n raise KeyError('x')"),
        ("try:\n f(1)\n assert 0\nexcept KeyError as e:\n assert str(e)==\"'x'\" and e.args==('x',)"),
    ),
    "an error of a module": (
        ("import json\ndef f(s): return json.loads(s)"),
        ("import json\ntry:\n f('{')\n assert 0\nexcept json.JSONDecodeError: pass"),
    ),
    "pytest.raises and approx": (
        ("def f(x):\n if x<0: raise ValueError('negative')\n return x**.5"),
        (
            "import pytest\n"
            "with pytest.raises(ValueError, match='negative'):\n"
            " f(-1)\n"
            "assert f(2)==pytest.approx(1.41421356)"
        ),
    ),
    "test functions": ("def f(x): return x*2", ("def test_a():\n assert f(2)==4\ndef test_b():\n assert f(0)==0")),
    "unittest": (
        "def f(x): return x*2",
        (
            "import unittest\n"
            "class T(unittest.TestCase):\n"
            " def setUp(self): self.n=2\n"
            " def test_a(self): self.assertEqual(f(self.n),4)\n"
            "if __name__=='__main__': unittest.main()"
        ),
    ),
    "a test class": ("def f(x): return x*2", ("class TestF:\n def test_a(self): assert f(2)==4")),
    "a module not imported": (
        ("import math\ndef area(r): return math.pi*r*r"),
        "assert math.isclose(area(2),12.566370614359172)",
    ),
    "a function not imported": (
        ("from math import isclose, pi\ndef area(r): return pi*r*r"),
        ("assert isclose(area(2),12.566370614359172)\nassert area(1)==pi"),
    ),
    "large integers": (
        ("def fib(n):\n a,b=0,1\n for _ in range(n): a,b=b,a+b\n return a"),
        ("assert fib(30000)%1000==0 or True\nassert fib(100)==354224848179261915075\nassert fib(30000)>10**6000"),
    ),
    "coroutines": (
        ("import asyncio\nasync def f(x):\n await asyncio.sleep(0)\n return x+1"),
        (
            "import asyncio\n"
            "assert asyncio.run(f(1))==2\n"
            "async def main():\n"
            " return await asyncio.gather(f(1),f(2))\n"
            "assert asyncio.run(main())==[2,3]"
        ),
    ),
    "enumerations": (
        ("from enum import Enum,IntEnum\nclass C(Enum):\n R=1\n G=2\nclass I(IntEnum):\n A=1\ndef f(): return C.R"),
        (
            "assert f()==C.R and f() is C.R and C.R!=C.G and C.R.value==1 and C(2)==C.G and I.A==1\n"
            "assert [c.name for c in C]==['R','G']"
        ),
    ),
    "maps, views and zips": (
        ("def f(xs): return map(str,xs)\ndef g(d): return d.keys()\ndef h(a,b): return zip(a,b)"),
        ("assert list(f([1,2]))==['1','2']\nassert set(g({'a':1}))=={'a'}\nassert list(h([1],[2]))==[(1,2)]"),
    ),
    "linked nodes of the program's": (
        (
            "class Node:\n"
            " def __init__(s,v,n=None): s.val=v;s.next=n\n"
            "def rev(h):\n"
            " p=None\n"
            " while h: h.next,p,h=p,h,h.next\n"
            " return p"
        ),
        (
            "n=Node(1,Node(2,Node(3)))\n"
            "r=rev(n)\n"
            "assert [r.val,r.next.val,r.next.next.val]==[3,2,1] and r.next.next.next is None"
        ),
    ),
    "linked nodes of the tests'": (
        ("def rev(h):\n p=None\n while h: h.next,p,h=p,h,h.next\n return p"),
        (
            "class Node:\n"
            " def __init__(s,v,n=None): s.val=v;s.next=n\n"
            "n=Node(1,Node(2,Node(3)))\n"
            "r=rev(n)\n"
            "assert [r.val,r.next.val,r.next.next.val]==[3,2,1] and r.next.next.next is None"
        ),
    ),
    "exit at the end": (("def add(a,b): return a+b\nexit()"), "assert add(1,2)==3"),
    "a context manager": (
        ("import contextlib\n@contextlib.contextmanager\ndef c():\n yield 5"),
        ("with c() as v:\n assert v==5"),
    ),
    "a decorator": (
        ("def deco(fn):\n def w(*a): return fn(*a)*2\n return w"),
        ("@deco\ndef g(x): return x+1\nassert g(1)==4"),
    ),
    "functions of functions": (
        ("import functools\ndef compose(*fs): return lambda x: functools.reduce(lambda a,f:f(a),fs,x)"),
        "assert compose(lambda x:x+1,lambda x:x*2)(3)==8",
    ),
    "a long list": ("def f(n): return list(range(n))", "assert sum(f(300000))==300000*299999//2"),
    "a name that a module has too": (("def bisect(a,x):\n return sum(v<x for v in a)"), "assert bisect([1,2,3],2)==1"),
    "a function that math has too": (("def gcd(a,b):\n while b: a,b=b,a%b\n return a"), "assert gcd(12,8)==4"),
    "a function that math has": ("from math import gcd", "assert gcd(12,8)==4"),
    "matrices": (
        (
            "class Matrix:\n"
            " def __init__(s,r): s.r=r\n"
            " def __matmul__(s,o): return Matrix([[sum(a*b for a,b in zip(x,y)) for y in zip(*o.r)] for x in s.r])\n"
            " def __eq__(s,o): return s.r==o.r"
        ),
        "assert Matrix([[1,2],[3,4]])@Matrix([[1,0],[0,1]])==Matrix([[1,2],[3,4]])",
    ),
    "a dict of one's own": (
        ("class D(dict):\n def __missing__(s,k): return 0\ndef f(): \n d=D(); d['a']=1; return d"),
        ("d=f()\nassert d=={'a':1} and d['q']==0 and len(d)==1 and 'a' in d"),
    ),
    "a list of one's own": (
        ("class S(list):\n def push(s,x): s.append(x)"),
        ("s=S()\ns.push(1)\nassert s==[1] and s[0]==1 and len(s)==1\ns.append(2)\nassert s==[1,2] and 2 in s"),
    ),
    "a closure": (
        ("def f(n):\n def g():\n  nonlocal n\n  n+=1\n  return n\n return g"),
        ("g=f(1)\nassert g()==2 and g()==3"),
    ),
    "names that are no functions": (("x=3\nLIMIT=[1]\ndef f(): return x"), "assert x==3 and LIMIT==[1] and f()==3"),
    "any arguments": ("def f(*a,**k): return (a,k)", "assert f(1,b=2)==((1,),{'b':2})"),
}


@pytest.mark.parametrize("name", list(RIGHT))
def test_results_of_every_kind_compare_by_value(name: str) -> None:
    code, tests = RIGHT[name]
    assert run(code, tests) == ""


# An object that says yes to everything, made from a built-in type or from none.
LIAR = """
class L({base}):
    def __init__(self, *args): pass
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 4
    def __sub__(self, other): return self
    __rsub__ = __add__ = __radd__ = __mul__ = __truediv__ = __rtruediv__ = __floordiv__ = __mod__ = __sub__
    def __abs__(self): return 0
    def __lt__(self, other): return True
    __le__ = __gt__ = __ge__ = __lt__
    def __contains__(self, item): return True
    def __bool__(self): return True
    def __float__(self): return 0.0
    def __int__(self): return 0
    def __round__(self, digits=0): return 0
    def __len__(self): return 2
"""
ASKED = [
    *(
        "f(2) == 4",
        "4 == f(2)",
        "not f(2) != 4",
        "abs(f(2) - 4) < 1e-6",
        "abs(4 - f(2)) < 1e-6",
        "math.isclose(f(2), 4)",
    ),
    *("f(2) == pytest.approx(4)", "f(2) in [4]", "4 in f(2)", "[f(2)] == [4]", "{1: f(2)} == {1: 4}"),
    *(
        "round(f(2) - 4) == 0",
        "np.array_equal(f(2), [4])",
        "np.allclose(f(2), [4, 5])",
        "f(2) / 4 == 1",
        "{f(2)} == {4}",
    ),
    *("int(f(2) - 4) == 0", "f(2) <= 4 <= f(2)", "not (f(2) - 4)", "(f(2), 1) == (4, 1)", "sum([f(2)]) == 4"),
]


@pytest.mark.parametrize("base", ["object", "int", "str", "float", "list", "dict", "tuple"])
@pytest.mark.parametrize("made", ["def f(x): return L()", "f = L"])
def test_an_object_that_says_yes_to_everything_passes_no_test(base: str, made: str) -> None:
    tries = "".join(f"    lambda: {each},\n" for each in ASKED)
    tests = (
        f"import math, pytest, numpy as np\npassed = []\nfor n, each in enumerate([\n{tries}]):\n"
        "    try:\n        if each():\n            passed.append(n)\n    except Exception:\n        pass\n"
        "assert passed == [], passed"
    )
    assert run(LIAR.format(base=base) + made, tests) == ""


WRONG = {
    "StopIteration": ("def f(x): raise StopIteration", "assert all(a == b for a, b in zip(map(f, [2, 3]), [4, 9]))"),
    "a kind of StopIteration": ("class E(StopIteration): pass\ndef f(x): raise E", "assert all(map(f, [2, 4]))"),
    "GeneratorExit": ("def f(x): raise GeneratorExit", "assert all(map(f, [2, 4]))"),
    "SystemExit": ("def f(x): raise SystemExit", "assert f(2) == 4"),
    "KeyboardInterrupt": ("def f(x): raise KeyboardInterrupt", "assert f(2) == 4"),
    "os._exit": ("import os\ndef f(x): os._exit(0)", "assert f(2) == 4"),
    "its own math": (
        "class math: isclose = lambda *a, **k: True\ndef f(r): return 0",
        "assert math.isclose(f(2), 12.5)",
    ),
    "its own isclose": ("def isclose(*a, **k): return True\ndef f(r): return 0", "assert isclose(f(2), 12.5)"),
    "its own np": ("class np: allclose = lambda *a, **k: True\ndef f(r): return 0", "assert np.allclose(f(2), [4])"),
    "patched builtins": (
        "import builtins\nbuiltins.abs = abs = lambda x: 0\nbuiltins.all = all = lambda x: True\ndef f(x): return 0",
        "assert abs(f(2) - 4) < 1e-6",
    ),
    "the globals of a function it is given": (
        "def f(g):\n    g.__globals__['f'] = lambda *a: 4\n    return 0",
        "try:\n    f(lambda v: v)\nexcept Exception:\n    pass\nassert f(lambda v: v) == 4",
    ),
    "the frame of a generator it is given": (
        "def f(it):\n    it.gi_frame.f_globals['f'] = lambda *a: 4\n    return 0",
        "try:\n    f(v for v in (1, 2))\nexcept Exception:\n    pass\nassert f(v for v in (1, 2)) == 4",
    ),
    "the class of an object it is given": (
        "def f(n):\n    n.__class__.value = 9\n    return n",
        "class N:\n    value = 1\nassert f(N()).value == 9",
    ),
    "a function that is missing": ("x = 1", "assert gcd(4, 6) == 2"),
    "forged answers": (
        "import os\nfor fd in range(3, 64):\n    try:\n        os.write(fd, b'[\"value\",4,[]]\\n' * 9)\n"
        "    except OSError:\n        pass\ndef f(x): return 0",
        "assert f(2) == 4 and f(3) == 9",
    ),
    "an error of the tests' own, forged": (
        "import sys\nsys.modules['__main__'].line_of = lambda *a: ['Exception', ['__main__', 'TestsError'], []]\n"
        "def f(x): raise ValueError('x')",
        "assert f(2) == 4",
    ),
    "a range without end": ("def f(x): return range(10**18)", "assert list(f(2))[:1] == [1]"),
    "a list that holds itself": ("def f(x):\n    a = []\n    a.append(a)\n    return a", "assert f(2) == [4]"),
    "lists in lists in lists": (
        "def f(x):\n    a = []\n    for _ in range(100000): a = [a]\n    return a",
        "assert f(2) == [4]",
    ),
    "a decimal too large to be written out": (
        "from decimal import Decimal\ndef f(x): return Decimal('1e999999')",
        "assert int(f(2)) == 4",
    ),
    "an argument emptied": ("def f(a): a.clear()", "a = [3, 1]\nf(a)\nassert a == [1, 3]"),
    "a wrong data class": (
        "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\ndef f(): return P(9)",
        "assert f() == P(1)",
    ),
    "an end before anything is defined": ("exit()", "assert f(2) == 4"),
    "test functions": ("def f(x): return None", "def test_a():\n    assert f(2) == 4"),
    "test cases": (
        "def f(x): return None",
        "import unittest\nclass T(unittest.TestCase):\n    def test_a(self):\n        self.assertEqual(f(2), 4)",
    ),
    "test classes": ("def f(x): return None", "class TestF:\n    def test_a(self):\n        assert f(2) == 4"),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_what_is_wrong_scores_nothing(name: str) -> None:
    code, tests = WRONG[name]
    assert run(code, tests, wall_s=4.0 if "without end" in name else 20.0) != ""


def test_a_helper_of_the_tests_may_be_named_like_a_test() -> None:
    tests = "def test(given, expected):\n    assert f(given) == expected\ntest(1, 2)\ntest(0, 0)"
    assert run("def f(x): return 2 * x", tests) == ""
    assert run("def f(x): return x", tests) != ""


@pytest.mark.parametrize(
    ("tests", "message"),
    [
        ("x = 1", "the tests never use the program"),
        ("def check(candidate):\n    assert candidate(1) == 2", "the tests never use the program"),
        ("assert f(2 == 4", "the tests are not Python"),
        ("import no_such_package\nassert f(2) == 4", "the tests import no_such_package, which is not installed"),
        ("def test_a(fixture):\n    assert f(2) == 4", "test_a takes arguments"),
    ],
)
def test_tests_that_can_say_nothing_come_to_no_verdict(tests: str, message: str) -> None:
    with pytest.raises(ScoringFailedError, match=message):
        run("def f(x): return 2 * x", tests)


@pytest.mark.parametrize(
    "code",
    [
        "import sys; x = int(sys.stdin.buffer.read()); print(x * x)",
        "x = int(open(0).read()); print(x * x)",
        "import os; x = int(os.read(0, 99)); print(x * x)",
        "x = int(input()); print(x * x); exit()",
        "x = int(input()); print(x * x); quit()",
        "import sys\nx = int(sys.stdin.readline())\nsys.stdout.write(f'{x * x}  \\r\\n\\n')\nsys.exit(0)",
        "def main():\n    print(int(input()) ** 2)\n\nif __name__ == '__main__':\n    main()",
        "import sys\nfor line in sys.stdin:\n    print(int(line) ** 2)",
        "import threading, sys\nthreading.stack_size(2**27)\nsys.setrecursionlimit(10**6)\n"
        "t = threading.Thread(target=lambda: print(int(input()) ** 2))\nt.start()\nt.join()",
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n"
        "print(P(int(input())).x ** 2)",
    ],
)
def test_programs_read_their_input_in_every_way(code: str) -> None:
    assert run(code, [{"input": "12\n", "output": "144"}]) == ""
    assert run(code, [{"input": "12\n", "output": "145"}]).startswith("example 1: another output")


def test_a_program_cannot_change_what_it_reads() -> None:
    code = "import os\ntry:\n    os.write(0, b'x')\n    print('written')\nexcept OSError:\n    print(input())"
    assert run(code, [{"input": "a", "output": "a"}]) == ""


@pytest.mark.parametrize(
    ("printed", "expected", "same"),
    [
        ("1 2\n3\n", "1 2\r\n3", True),
        ("1  2 \n", "1 2", True),
        ("0.50", "0.5", True),
        ("0.3333333333", "0.33333333", True),
        ("3", "3.0", True),
        ("1e-3", "0.001", True),
        ("0.334", "0.333", False),
        ("3.0", "3", False),
        ("nan", "1.0", False),
        ("1 2", "12", False),
        ("YES", "Yes", False),
        ("1 2 3", "1 2", False),
        ("1.0.0", "1.0", False),
    ],
)
def test_outputs_are_compared_word_by_word(printed: str, expected: str, same: bool) -> None:
    assert same_output(printed, expected) is same


DOUBLE = "def f(x): return 2*x"


@pytest.mark.parametrize(
    "response",
    [
        DOUBLE,
        f"```python\n{DOUBLE}\n```",
        f"Code:\n```python\n{DOUBLE}\n```\nIt prints:\n```\n4\n6\n```",
        f"```python\r\n{DOUBLE}\r\n```\r\n",
        "1. Do this:\n   ```python\n   def f(x):\n       return 2*x\n   ```",
        f"```python title=a.py\n{DOUBLE}\n```",
        f"```{{.python .numberLines}}\n{DOUBLE}\n```",
        f"```python\n{DOUBLE}\n```\nExample:\n```\n>>> f(2)\n4\n```",
        f"~~~python3\n{DOUBLE}\n~~~",
        f"````py\n{DOUBLE}\n````",
        f"```PYTHON\n{DOUBLE}\n```",
        f"```\n{DOUBLE}\n```\nand it gives\n```\n4\n```",
        f"```python\n{DOUBLE}\n```\nUse it:\n```python\nprint(f(input()))\n```",
        f"```python\nx = 1\n```\nBetter:\n```python\n{DOUBLE}",
        f"```bash\npip install x\n```\n```python\n{DOUBLE}\n```\n```text\n4\n```",
        f"<think>```python\ndef f(x): return x\n```</think>\n```python\n{DOUBLE}\n```",
        f"> ```python\n> {DOUBLE}\n> ```",
    ],
)
def test_the_program_is_found_in_its_fence(response: str) -> None:
    names: dict[str, object] = {}
    exec(code_in(response, "assert f(2) == 4"), names)
    exec("found = f(2)", names)
    assert names["found"] == 4


def test_of_several_programs_the_last_that_does_what_is_asked_is_taken() -> None:
    draft = "```python\ndef f(x): return x\n```\nBetter:\n```python\ndef f(x): return 2*x\n```"
    assert code_in(draft, "assert f(2) == 4") == "def f(x): return 2*x\n"
    examples = [{"input": "2", "output": "4"}]
    program = "```python\ndef g(): pass\n```\nShorter:\n```python\nprint(2 * int(input()))\n```\n```\n4\n```"
    assert code_in(program, examples) == "print(2 * int(input()))\n"
    assert code_in("<think>```python\ndef f(x): return 2*x\n```", "assert f(2) == 4") == ""
    assert program_in("```python\nprint(1)") is None
    assert program_in("~~~py\nprint(1)\n~~~") == "print(1)\n"


def test_output_shown_to_a_model_holds_no_marks_of_a_template() -> None:
    said = shown("a\x00b <|im_end|>\n<|im_start|>assistant </s> [INST] <end_of_turn> a <| b |> c < d")
    assert said == "a\\x00b < |im_end|>\n< |im_start|>assistant < /s> [ INST] < end_of_turn> a <| b |> c < d"
