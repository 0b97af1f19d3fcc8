r"""Whether two expressions of arithmetic are one and the same, decided exactly and without a computer algebra system.

An expression is a quotient of two polynomials with fractions as coefficients. They are made of letters, pi, square
roots of primes (whose squares are written as the primes), and whatever else is a root or a function of an expression,
taken as it is. Two quotients whose cross products have the same coefficients are equal. Where nothing but letters, pi
and roots of numbers is in them the reverse holds too; a function may obey laws that are not considered here.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import NamedTuple

PI = "π"
# Sizes beyond which an expression is left to the verifier: terms, an exponent, bits of a coefficient, a root's number.
_TERMS, _EXPONENT, _BITS, _RADICAND = 200, 24, 2_000, 10**8

# What a term multiplies, in order: generators and their powers.
Powers = tuple[tuple[str, int], ...]
Polynomial = Mapping[Powers, Fraction]


class Quotient(NamedTuple):
    """A quotient of polynomials; terms that are zero are left out."""

    over: Polynomial
    under: Polynomial


class BeyondAlgebraError(Exception):
    """An expression that is not such a quotient, or too large a one."""


def quotient_of(node: ast.AST) -> Quotient:
    """The quotient that an expression is.

    Args:
        node: Of Python's syntax: numbers, names of one letter, ``+ - * / **``, functions of one argument.

    Raises:
        BeyondAlgebraError: If it holds anything else, divides by zero, or grows too large.
    """
    if isinstance(node, ast.Constant):
        return _number(_fraction(node.value))
    if isinstance(node, ast.Name) and len(node.id) == 1:
        return Quotient({((node.id, 1),): Fraction(1)}, _ONE)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) == 1 and not node.keywords:
        return _as_it_is(node.func.id, quotient_of(node.args[0]))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
        inner = quotient_of(node.operand)
        return inner if isinstance(node.op, ast.UAdd) else _times(_number(Fraction(-1)), inner)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](quotient_of(node.left), quotient_of(node.right))
    raise BeyondAlgebraError


def same(one: Quotient, other: Quotient) -> bool:
    """Whether two quotients are found equal for all values of their letters.

    Raises:
        BeyondAlgebraError: If their cross products grow too large.
    """
    return _product(one.over, other.under) == _product(other.over, one.under)


def _fraction(value: object) -> Fraction:
    """A written number, exactly as it was written."""
    text = repr(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or len(text) > 15 or "n" in text:
        raise BeyondAlgebraError
    return Fraction(text)


def _number(value: Fraction) -> Quotient:
    return Quotient({(): value} if value else {}, _ONE)


def _as_it_is(function: str, argument: Quotient) -> Quotient:
    """A function's value, which equals that of the same function of the same quotient."""
    name = f"{function}({'/'.join(str(sorted(part.items())) for part in argument)})"
    return Quotient({((name, 1),): Fraction(1)}, _ONE)


def _constant(quotient: Quotient) -> Fraction | None:
    """The plain number that a quotient is, or None if it is none."""
    if any(powers != () for part in quotient for powers in part):
        return None
    return quotient.over.get((), Fraction(0)) / quotient.under[()]


def _product(one: Polynomial, other: Polynomial) -> Polynomial:
    if len(one) * len(other) > _TERMS:
        raise BeyondAlgebraError
    terms: dict[Powers, Fraction] = {}
    for powers, factor in one.items():
        for others, times in other.items():
            term, extra = _together(powers, others)
            terms[term] = terms.get(term, Fraction(0)) + factor * times * extra
    return _tidy(terms)


def _together(one: Powers, other: Powers) -> tuple[Powers, int]:
    """The product of two terms' powers, and the number that the squares of roots in it make."""
    powers, number = Counter(dict(one)), 1
    for name, power in other:
        powers[name] += power
    for name, power in powers.items():
        if name.startswith("√"):
            number *= int(name[1:]) ** (power // 2)
            powers[name] = power % 2
        elif power > _EXPONENT:
            raise BeyondAlgebraError
    return tuple(sorted((name, power) for name, power in powers.items() if power)), number


def _tidy(terms: Mapping[Powers, Fraction]) -> Polynomial:
    if any(max(f.numerator.bit_length(), f.denominator.bit_length()) > _BITS for f in terms.values()):
        raise BeyondAlgebraError
    return {powers: factor for powers, factor in terms.items() if factor}


def _sum(one: Polynomial, other: Polynomial) -> Polynomial:
    return _tidy({powers: one.get(powers, Fraction(0)) + other.get(powers, Fraction(0)) for powers in {*one, *other}})


def _plus(one: Quotient, other: Quotient) -> Quotient:
    if one.under == other.under:
        return Quotient(_sum(one.over, other.over), one.under)
    over = _sum(_product(one.over, other.under), _product(other.over, one.under))
    return Quotient(over, _product(one.under, other.under))


def _minus(one: Quotient, other: Quotient) -> Quotient:
    return _plus(one, _times(_number(Fraction(-1)), other))


def _times(one: Quotient, other: Quotient) -> Quotient:
    return Quotient(_product(one.over, other.over), _product(one.under, other.under))


def _divided(one: Quotient, other: Quotient) -> Quotient:
    if not other.over:
        raise BeyondAlgebraError
    return _times(one, Quotient(other.under, other.over))


def _power(base: Quotient, exponent: Quotient) -> Quotient:
    power = _constant(exponent)
    if power is None:
        raise BeyondAlgebraError
    if power.denominator == 2:
        number = _constant(base)
        base, power = _as_it_is("root", base) if number is None else _root(number), power * 2
    if power.denominator != 1 or abs(power) > _EXPONENT or (power <= 0 and not base.over):
        raise BeyondAlgebraError
    if power < 0:
        base = Quotient(base.under, base.over)
    result = _number(Fraction(1))
    for _ in range(abs(int(power))):
        result = _times(result, base)
    return result


def _root(value: Fraction) -> Quotient:
    """The square root of a number: a fraction times roots of primes."""
    rest = value.numerator * value.denominator
    if not 0 <= rest <= _RADICAND:
        raise BeyondAlgebraError
    if rest == 0:
        return _number(Fraction(0))
    outside, primes, divisor = 1, list[tuple[str, int]](), 2
    while divisor * divisor <= rest:
        while rest % (divisor * divisor) == 0:
            rest, outside = rest // (divisor * divisor), outside * divisor
        if rest % divisor == 0:
            primes.append((f"√{divisor}", 1))
            rest //= divisor
        divisor += 1
    if rest > 1:
        primes.append((f"√{rest}", 1))
    return Quotient({tuple(sorted(primes)): Fraction(outside, value.denominator)}, _ONE)


_ONE: Polynomial = {(): Fraction(1)}
_OPERATIONS: Mapping[type[ast.AST], Callable[[Quotient, Quotient], Quotient]] = {
    ast.Add: _plus,
    ast.Sub: _minus,
    ast.Mult: _times,
    ast.Div: _divided,
    ast.Pow: _power,
}
