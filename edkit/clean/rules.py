"""Rules over measured facts, as people type them: `sharpness >= 0.2 and (width >= 512 or height >= 512)`.

    rule       = both {"or" both}
    both       = single {"and" single}
    single     = "not" single | "(" rule ")" | comparison
    comparison = operand (< | <= | > | >= | == | !=) operand {... operand}       0.2 < brightness < 0.9
    operand    = a fact's name | a number (10, 1.5e6, 200kB, 2MB) | a word ("JPEG", JPEG)

Nothing is ever evaluated as Python.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edkit.data.errors import UsageError
from edkit.measure.facts import FACTS, Fact, Facts, Value, nearest

_TOKEN = re.compile(
    r"""\s*(?:(?P<number>[-+]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(?P<unit>kB|MB|GB)?(?![\w.])
      |(?P<name>[A-Za-z_]\w*)|"(?P<double>[^"]*)"|'(?P<single>[^']*)'|(?P<sign><=|>=|==|!=|=|<|>|\(|\)))""",
    re.VERBOSE,
)
_UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9}
_SIGNS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_WORDS = frozenset({"and", "or", "not"})

Test = Callable[[Facts], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What a kept image must satisfy: the text, the facts it needs, and the test itself."""

    text: str
    names: tuple[str, ...]  # in the order they are named
    holds: Test

    def values(self, facts: Facts) -> dict[str, Value]:
        """The facts the rule looks at."""
        return {name: facts[name] for name in self.names}

    def because(self, facts: Facts) -> str:
        """Why an image was dropped: `sharpness is 0.083, not sharpness >= 0.2`."""
        said = ", ".join(f"{name} is {value_text(value)}" for name, value in self.values(facts).items())
        return f"{said}; the rule is {self.text}"


def parse(text: str, known: Mapping[str, Fact] = FACTS) -> Rule:
    """The rule a text says.

    Raises UsageError in one line: where the text stops making sense, or the nearest fact to an unknown name.
    """
    reader = _Reader(text, known)
    test = reader.any_of()
    if reader.token is not None:
        reader.fail(f"{reader.token.text!r} is one too many")
    if not reader.names:
        reader.fail("it names no fact")
    return Rule(text=" ".join(text.split()), names=tuple(reader.names), holds=test)


def value_text(value: Value) -> str:
    """A fact's value as a person reads it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str  # "number", "name", "word" (quoted) or "sign"
    text: str
    number: float = 0.0


class _Reader:
    """A recursive descent over the tokens of one rule."""

    def __init__(self, text: str, known: Mapping[str, Fact]) -> None:
        self.text, self.known = text, known
        self.names: dict[str, None] = {}
        self._tokens = self._read()
        self.token: _Token | None = next(self._tokens, None)

    def fail(self, what: str, mend: str | None = None) -> None:
        """Raise UsageError about this rule."""
        raise UsageError(what, where=f'rule "{self.text}"', mend=mend)

    def _read(self) -> Iterator[_Token]:
        position, end = 0, len(self.text.rstrip())
        while position < end:
            match = _TOKEN.match(self.text, position)
            if match is None:
                rest = self.text[position:].strip()
                self.fail(f"can't be read at {rest!r}")
                return
            position = match.end()
            if match["number"] is not None:
                number = float(match["number"].replace("_", "")) * _UNITS.get(match["unit"] or "", 1.0)
                yield _Token("number", match[0].strip(), number)
            elif match["name"] is not None:
                yield _Token("name", match["name"])
            elif match["sign"] is not None:
                yield _Token("sign", "==" if match["sign"] == "=" else match["sign"])
            else:
                yield _Token("word", match["double"] if match["double"] is not None else match["single"])

    def _next(self) -> None:
        self.token = next(self._tokens, None)

    def _takes(self, text: str) -> bool:
        if self.token is not None and self.token.kind in ("name", "sign") and self.token.text.lower() == text:
            self._next()
            return True
        return False

    def any_of(self) -> Test:
        tests = [self._all_of()]
        while self._takes("or"):
            tests.append(self._all_of())
        return tests[0] if len(tests) == 1 else lambda facts: any(test(facts) for test in tests)

    def _all_of(self) -> Test:
        tests = [self._single()]
        while self._takes("and"):
            tests.append(self._single())
        return tests[0] if len(tests) == 1 else lambda facts: all(test(facts) for test in tests)

    def _single(self) -> Test:
        if self._takes("not"):
            test = self._single()
            return lambda facts: not test(facts)
        if self._takes("("):
            test = self.any_of()
            if not self._takes(")"):
                self.fail('a ")" is missing')
            return test
        return self._comparison()

    def _comparison(self) -> Test:
        operands, signs = [self._operand()], []
        while self.token is not None and self.token.kind == "sign" and self.token.text in _SIGNS:
            signs.append(self.token.text)
            self._next()
            operands.append(self._operand())
        if not signs:
            self.fail(f"after {operands[0].text!r} a comparison is missing", mend="such as >= 0.2")
        steps = [
            self._step(left, sign, right) for left, sign, right in zip(operands, signs, operands[1:], strict=False)
        ]
        return steps[0] if len(steps) == 1 else lambda facts: all(step(facts) for step in steps)

    def _operand(self) -> _Token:
        token = self.token
        if token is None or token.kind == "sign" or (token.kind == "name" and token.text.lower() in _WORDS):
            self.fail(f"a fact or a number is missing {'at its end' if token is None else f'before {token.text!r}'}")
        assert token is not None
        self._next()
        return token

    def _step(self, left: _Token, sign: str, right: _Token) -> Test:
        sides = [self._fact(left), self._fact(right)]
        text = any(fact is not None and fact.text for fact in sides)
        getters: list[Callable[[Facts], object]] = []
        for token, fact in zip((left, right), sides, strict=True):
            if fact is not None and fact.text == text:
                self.names.setdefault(fact.name)
                getters.append(_folded(fact.name) if text else _numeric(fact.name))
            elif text and fact is None:
                getters.append(_constant(token.text.casefold()))
            elif not text and token.kind == "number":
                getters.append(_constant(token.number))
            elif token.kind == "name" and fact is None:
                self.fail(f"no fact is called {token.text!r}", mend=nearest(token.text, self._rulable()))
            else:
                self.fail(f"{left.text} and {right.text} can't be compared: one is a word, one a number")
        if text and sign not in ("==", "!="):
            self.fail(f"words can be compared by == and != alone, not by {sign}")
        compare, (one, other) = _SIGNS[sign], getters
        return lambda facts: compare(one(facts), other(facts))

    def _fact(self, token: _Token) -> Fact | None:
        fact = self.known.get(token.text) if token.kind == "name" else None
        return fact if fact is not None and fact.rule else None

    def _rulable(self) -> list[str]:
        return [name for name, fact in self.known.items() if fact.rule]


def _numeric(name: str) -> Callable[[Facts], object]:
    return lambda facts: facts[name]


def _folded(name: str) -> Callable[[Facts], object]:
    return lambda facts: str(facts[name]).casefold()


def _constant(value: object) -> Callable[[Facts], object]:
    return lambda facts: value
