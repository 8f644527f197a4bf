"""Rules over facts and fields, as people type them: `sharpness >= 0.2 and licence in ("CC0", "PDM")`.

    rule       = both {"or" both}
    both       = single {"and" single}
    single     = "not" single | "(" rule ")" | comparison
    comparison = operand (< | <= | > | >= | == | !=) operand {... operand}       0.2 < brightness < 0.9
               | operand ["not"] (contains | has | matches) word                 host contains flickr
               | operand ["not"] "in" "(" operand {"," operand} ")"
               | operand "is" ["not"] (missing | known)
    operand    = a name | a number (10, 1.5e6, 200kB, 2MB) | a word ("JPEG", JPEG)

A comparison with a value that is not known is neither true nor false; a rule whose outcome hangs on it is
undecided (Kleene's logic: `width > 10 or licence == CC0` is true of a large image whatever its licence).
Nothing is ever evaluated as Python.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from edkit.clean.fields import ALIASES, FIELDS
from edkit.data.errors import UsageError
from edkit.measure.facts import Facts, Value, nearest

_TOKEN = re.compile(
    r"""\s*(?:(?P<number>[-+]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(?P<unit>kB|MB|GB)?(?![\w.])
      |(?P<name>[A-Za-z_]\w*)|"(?P<double>[^"]*)"|'(?P<single>[^']*)'|(?P<sign><=|>=|==|!=|=|<|>|\(|\)|,))""",
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
_WORDS = frozenset({"and", "or", "not", "contains", "has", "matches", "in", "is"})

Test = Callable[[Facts], bool | None]
"""True, False, or None where a value that matters is not known."""


class Known(Protocol):
    """What a rule must know of a name."""

    @property
    def name(self) -> str:
        """As values are looked up by it."""

    @property
    def text(self) -> bool:
        """Whether its values are words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What a kept image must satisfy: the text, the names it uses, and the test itself."""

    text: str
    names: tuple[str, ...]  # in the order they are named
    holds: Test

    def values(self, facts: Facts) -> dict[str, Value]:
        """The values the rule looks at."""
        return {name: facts.get(name) for name in self.names}

    def missing(self, facts: Facts) -> tuple[str, ...]:
        """The names it uses whose values are not known."""
        return tuple(name for name, value in self.values(facts).items() if value is None)

    def because(self, facts: Facts, *, dropping: bool = False) -> str:
        """Why an image was dropped: `sharpness is 0.083; the rule is sharpness >= 0.2`."""
        said = ", ".join(f"{name} is {value_text(value)}" for name, value in self.values(facts).items())
        return f"{said}; {'dropped is' if dropping else 'the rule is'} {self.text}"


def parse(text: str, known: Mapping[str, Known] = FIELDS) -> Rule:
    """The rule a text says.

    Raises UsageError in one line: where the text stops making sense, or the nearest name to an unknown one.
    """
    reader = _Reader(text, known)
    test = reader.any_of()
    if reader.token is not None:
        reader.fail(f"{reader.token.text!r} is one too many")
    if not reader.names:
        reader.fail("it names no fact")
    return Rule(text=" ".join(text.split()), names=tuple(reader.names), holds=test)


def field_named(name: str, known: Mapping[str, Known] = FIELDS) -> Known:
    """The field of that name or alias; UsageError with the nearest one where there is none."""
    field = known.get(ALIASES.get(name, name))
    if field is None:
        raise UsageError(f"no fact is called {name!r}", mend=nearest(name, known))
    return field


def value_text(value: Value) -> str:
    """A value as a person reads it."""
    if value is None:
        return "not known"
    if isinstance(value, str):
        return f'"{value}"' if len(value) <= 80 else f'"{value[:79]}…"'
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str  # "number", "name", "word" (quoted) or "sign"
    text: str
    number: float = 0.0


class _Reader:
    """A recursive descent over the tokens of one rule."""

    def __init__(self, text: str, known: Mapping[str, Known]) -> None:
        self.text, self.known = text, known
        self.names: dict[str, None] = {}
        self._depth = 0
        self._tokens = self._read()
        self.token: _Token | None = next(self._tokens, None)

    def fail(self, what: str, mend: str | None = None) -> NoReturn:
        """Raise UsageError about this rule."""
        raise UsageError(what, where=f'rule "{self.text}"', mend=mend)

    def _read(self) -> Iterator[_Token]:
        position, end = 0, len(self.text.rstrip())
        while position < end:
            match = _TOKEN.match(self.text, position)
            if match is None:
                self.fail(f"can't be read at {self.text[position:].strip()!r}")
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
        return tests[0] if len(tests) == 1 else _either(tests, True)

    def _all_of(self) -> Test:
        tests = [self._single()]
        while self._takes("and"):
            tests.append(self._single())
        return tests[0] if len(tests) == 1 else _either(tests, False)

    def _single(self) -> Test:
        self._depth += 1
        if self._depth > 100:
            self.fail("it is nested too deeply")
        try:
            if self._takes("not"):
                return _negated(self._single())
            if self._takes("("):
                test = self.any_of()
                if not self._takes(")"):
                    self.fail('a ")" is missing')
                return test
            return self._comparison()
        finally:
            self._depth -= 1

    def _comparison(self) -> Test:
        first = self._operand()
        if (test := self._worded(first)) is not None:
            return test
        operands, signs = [first], []
        while self.token is not None and self.token.kind == "sign" and self.token.text in _SIGNS:
            signs.append(self.token.text)
            self._next()
            operands.append(self._operand())
        if not signs:
            self.fail(f"after {first.text!r} a comparison is missing", mend="such as >= 0.2")
        steps = [
            self._step(left, sign, right) for left, sign, right in zip(operands, signs, operands[1:], strict=False)
        ]
        return steps[0] if len(steps) == 1 else _either(steps, False)

    def _worded(self, left: _Token) -> Test | None:
        """A comparison by a word (contains, has, matches, in, is), if one follows."""
        negated = self._takes("not")
        for word in ("contains", "has", "matches", "in", "is"):
            if self._takes(word):
                break
        else:
            if negated:
                self.fail('after "not" contains, has, matches or in is missing')
            return None
        field = self._field(left) if left.kind == "name" else None
        if field is None:
            self.fail(f"no fact is called {left.text!r}", mend=nearest(left.text, self.known))
        self.names.setdefault(field.name)
        test = self._membership(field) if word == "in" else self._state(field) if word == "is" else None
        if test is None:
            test = self._matching(field, word)
        return _negated(test) if negated else test

    def _state(self, field: Known) -> Test:
        negated = self._takes("not")
        if self._takes("missing"):
            wanted = True
        elif self._takes("known"):
            wanted = False
        else:
            self.fail('after "is" missing or known is expected', mend=f"{field.name} is missing")
        name, wanted = field.name, wanted is not negated
        return lambda facts: (facts.get(name) is None) is wanted

    def _matching(self, field: Known, word: str) -> Test:
        if not field.text:
            self.fail(f"{field.name} is a number: it can't be compared by {word}")
        text = self._operand().text
        if not text:
            self.fail(f"after {word} a word is missing")
        if word == "contains":
            wanted = text.casefold()
            return _on_text(field.name, lambda value: wanted in value.casefold())
        try:
            pattern = re.compile(text if word == "matches" else rf"(?<!\w){re.escape(text)}(?!\w)", re.IGNORECASE)
        except re.error as error:
            self.fail(f"{text!r} is no regular expression: {error}")
        return _on_text(field.name, lambda value: pattern.search(value) is not None)

    def _membership(self, field: Known) -> Test:
        if not self._takes("("):
            self.fail('after "in" a list in parentheses is missing', mend='in ("one", "two")')
        tests = []
        left = _Token("name", field.name)
        while True:
            tests.append(self._step(left, "==", self._operand()))
            if self._takes(")"):
                return _either(tests, True)
            if not self._takes(","):
                self.fail('a ")" is missing')

    def _operand(self) -> _Token:
        token = self.token
        if token is None or token.kind == "sign" or (token.kind == "name" and token.text.lower() in _WORDS):
            self.fail(f"a fact or a number is missing {'at its end' if token is None else f'before {token.text!r}'}")
        self._next()
        return token

    def _step(self, left: _Token, sign: str, right: _Token) -> Test:
        sides = [self._field(left), self._field(right)]
        text = any(field is not None and field.text for field in sides)
        getters: list[Callable[[Facts], object]] = []
        for token, field in zip((left, right), sides, strict=True):
            if field is not None and field.text == text:
                self.names.setdefault(field.name)
                getters.append(_folded(field.name) if text else _numeric(field.name))
            elif text and field is None:
                getters.append(_constant(token.text.casefold()))
            elif not text and token.kind == "number":
                getters.append(_constant(token.number))
            elif token.kind == "name" and field is None:
                self.fail(f"no fact is called {token.text!r}", mend=nearest(token.text, self.known))
            else:
                self.fail(f"{left.text} and {right.text} can't be compared: one is a word, one a number")
        if text and sign not in ("==", "!="):
            self.fail(f"words can be compared by == and != alone, not by {sign}")
        compare, (one, other) = _SIGNS[sign], getters

        def test(facts: Facts) -> bool | None:
            a, b = one(facts), other(facts)
            return None if a is None or b is None else compare(a, b)

        return test

    def _field(self, token: _Token) -> Known | None:
        return self.known.get(ALIASES.get(token.text, token.text)) if token.kind == "name" else None


def _either(tests: list[Test], decides: bool) -> Test:
    """`or` (True decides) or `and` (False decides) of tests of which some may not know."""

    def test(facts: Facts) -> bool | None:
        outcome: bool | None = not decides
        for one in tests:
            found = one(facts)
            if found is decides:
                return decides
            if found is None:
                outcome = None
        return outcome

    return test


def _negated(test: Test) -> Test:
    return lambda facts: None if (found := test(facts)) is None else not found


def _on_text(name: str, test: Callable[[str], bool]) -> Test:
    return lambda facts: None if (value := facts.get(name)) is None else test(str(value))


def _numeric(name: str) -> Callable[[Facts], object]:
    return lambda facts: facts.get(name)


def _folded(name: str) -> Callable[[Facts], object]:
    return lambda facts: None if (value := facts.get(name)) is None else str(value).casefold()


def _constant(value: object) -> Callable[[Facts], object]:
    return lambda facts: value
