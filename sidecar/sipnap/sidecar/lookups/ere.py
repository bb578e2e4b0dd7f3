"""POSIX extended regular expressions in linear time.

The expressions of NAPTR records come from whoever owns the number's zone. A backtracking engine such as `re` lets one
of them stop the sidecar for years: ``(1|1|1)*x``. Here all ways to match go forward together, character by character
(Thompson's construction, with captures), so the work is at most the size of the expression times the length of the
subject, and a budget bounds even that. Subjects are telephone numbers: speed is no reason for a library.

What POSIX leaves undefined is refused, with one exception that zones are full of: ``^+43``, where a literal ``+`` was
meant.
"""

from __future__ import annotations

import string
from dataclasses import dataclass

MOST_INSTRUCTIONS = 300
"""Largest expression, compiled: counted repeats are written out."""

MOST_NESTED = 16
"""Deepest groups."""

_MOST_REPEATS = 255

_CLASSES = {
    "alnum": string.ascii_letters + string.digits,
    "alpha": string.ascii_letters,
    "blank": " \t",
    "cntrl": "".join(map(chr, [*range(32), 127])),
    "digit": string.digits,
    "graph": "".join(map(chr, range(33, 127))),
    "lower": string.ascii_lowercase,
    "print": "".join(map(chr, range(32, 127))),
    "punct": string.punctuation,
    "space": string.whitespace,
    "upper": string.ascii_uppercase,
    "xdigit": string.hexdigits,
}

# Instructions: what they do, and their one or two operands.
_CHARACTER, _SPLIT, _JUMP, _SAVE, _START, _END, _MATCH = range(7)

_Captures = tuple[int, ...]


class BadExpression(ValueError):
    """It is no extended regular expression, or one that is refused."""


class TooCostly(Exception):
    """The budget is spent."""


@dataclass(slots=True)
class Budget:
    """How many steps the engine may take in all."""

    steps: int
    """What is left; a step takes about a third of a microsecond."""

    def spend(self, steps: int) -> None:
        """Take some off.

        Raises:
            TooCostly: None are left.
        """
        self.steps -= steps
        if self.steps < 0:
            raise TooCostly


@dataclass(frozen=True, slots=True)
class _Characters:
    chosen: frozenset[str]
    negated: bool

    def has(self, character: str) -> bool:
        return (character in self.chosen) != self.negated


@dataclass(frozen=True, slots=True)
class _Anchor:
    instruction: int


@dataclass(frozen=True, slots=True)
class _Group:
    number: int
    inner: _Node


@dataclass(frozen=True, slots=True)
class _Repeat:
    inner: _Node
    least: int
    most: int | None


@dataclass(frozen=True, slots=True)
class _Sequence:
    items: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Choice:
    items: tuple[_Node, ...]


_Node = _Characters | _Anchor | _Group | _Repeat | _Sequence | _Choice
_Instruction = tuple[int, int, int, _Characters | None]


class Expression:
    """A compiled expression."""

    def __init__(self, pattern: str, *, ignore_case: bool = False) -> None:
        """Compile it.

        Raises:
            BadExpression: It cannot be; says why.
        """
        self._ignore_case = ignore_case
        parser = _Parser(pattern, ignore_case=ignore_case)
        tree = parser.whole()
        self.groups = parser.groups
        """How many groups it has."""
        self._program: list[_Instruction] = []
        self._emit_node(tree)
        self._emit(_MATCH)

    def search(self, subject: str, budget: Budget) -> list[str] | None:
        """The leftmost, then longest match: the whole and each group (one that took no part is empty), or None.

        Which group gets how much of that is decided from the left: an earlier alternative before a later one, repeats
        as often as they can. (POSIX prefers the longer alternative; the whole match is the same.)

        Raises:
            TooCostly: The budget was spent before that.
        """
        for start in range(len(subject) + 1):
            captures = self._match(subject, start, budget)
            if captures is not None:
                pairs = zip(captures[::2], captures[1::2], strict=True)
                return [subject[begin:end] if begin >= 0 else "" for begin, end in pairs]
        return None

    def _match(self, subject: str, start: int, budget: Budget) -> _Captures | None:
        threads = self._reached([(0, (start, -1) + (-1, -1) * self.groups)], start, len(subject), budget)
        longest: _Captures | None = None
        position = start
        while threads:
            character = subject[position] if position < len(subject) else ""
            if self._ignore_case:
                character = character.lower()
            matched: _Captures | None = None
            moved: list[tuple[int, _Captures]] = []
            for at, captures in threads:
                kind, _, _, characters = self._program[at]
                if kind == _MATCH:
                    matched = matched or (captures[0], position, *captures[2:])
                elif character and characters is not None and characters.has(character):
                    moved.append((at + 1, captures))
            longest = matched or longest
            position += 1
            threads = self._reached(moved, position, len(subject), budget)
        return longest

    def _reached(
        self, threads: list[tuple[int, _Captures]], position: int, length: int, budget: Budget
    ) -> list[tuple[int, _Captures]]:
        """Where the threads come to without taking a character; the preferred first, each place once."""
        reached: list[tuple[int, _Captures]] = []
        seen: set[int] = set()
        waiting = threads[::-1]
        while waiting:
            at, captures = waiting.pop()
            budget.spend(1)
            if at in seen:
                continue
            seen.add(at)
            kind, first, second, _ = self._program[at]
            if kind == _SPLIT:
                waiting.append((second, captures))
                waiting.append((first, captures))
            elif kind == _JUMP:
                waiting.append((first, captures))
            elif kind == _SAVE:
                waiting.append((at + 1, (*captures[:first], position, *captures[first + 1 :])))
            elif kind == _START:
                if position == 0:
                    waiting.append((at + 1, captures))
            elif kind == _END:
                if position == length:
                    waiting.append((at + 1, captures))
            else:
                reached.append((at, captures))
        return reached

    def _emit(self, kind: int, first: int = 0, second: int = 0, characters: _Characters | None = None) -> int:
        if len(self._program) >= MOST_INSTRUCTIONS:
            raise BadExpression("it is too large")
        self._program.append((kind, first, second, characters))
        return len(self._program) - 1

    def _emit_node(self, node: _Node) -> None:
        match node:
            case _Characters():
                self._emit(_CHARACTER, characters=node)
            case _Anchor(instruction):
                self._emit(instruction)
            case _Group(number, inner):
                self._emit(_SAVE, 2 * number)
                self._emit_node(inner)
                self._emit(_SAVE, 2 * number + 1)
            case _Sequence(items):
                for item in items:
                    self._emit_node(item)
            case _Choice(items):
                self._emit_choice(items)
            case _Repeat(inner, least, most):
                self._emit_repeat(inner, least, most)

    def _emit_choice(self, items: tuple[_Node, ...]) -> None:
        jumps = []
        for item in items[:-1]:
            split = self._emit(_SPLIT)
            self._emit_node(item)
            jumps.append(self._emit(_JUMP))
            self._program[split] = (_SPLIT, split + 1, len(self._program), None)
        self._emit_node(items[-1])
        for jump in jumps:
            self._program[jump] = (_JUMP, len(self._program), 0, None)

    def _emit_repeat(self, inner: _Node, least: int, most: int | None) -> None:
        for _ in range(least):
            self._emit_node(inner)
        splits = []
        for _ in range(1 if most is None else most - least):
            splits.append(self._emit(_SPLIT))
            self._emit_node(inner)
        if most is None:
            self._emit(_JUMP, splits[0])
        for split in splits:
            self._program[split] = (_SPLIT, split + 1, len(self._program), None)


class _Parser:
    def __init__(self, pattern: str, *, ignore_case: bool) -> None:
        self._pattern = pattern
        self._ignore_case = ignore_case
        self._at = 0
        self._depth = 0
        self.groups = 0

    def whole(self) -> _Node:
        tree = self._choice()
        if self._at < len(self._pattern):
            raise BadExpression("a parenthesis is closed that was not opened")
        return tree

    def _peek(self) -> str:
        return self._pattern[self._at : self._at + 1]

    def _next(self) -> str:
        character = self._peek()
        if not character:
            raise BadExpression("it ends too early")
        self._at += 1
        return character

    def _choice(self) -> _Node:
        items = [self._sequence()]
        while self._peek() == "|":
            self._at += 1
            items.append(self._sequence())
        return items[0] if len(items) == 1 else _Choice(tuple(items))

    def _sequence(self) -> _Node:
        items: list[_Node] = []
        while self._peek() not in ("", "|", ")"):
            # `^+43` is what people write who mean a number's plus.
            if self._peek() == "+" and items in ([], [_Anchor(_START)]):
                self._at += 1
                items.append(self._literal("+"))
            else:
                items.append(self._repeated())
        return _Sequence(tuple(items))

    def _repeated(self) -> _Node:
        atom = self._atom()
        if atom == _Anchor(_START) and self._peek() == "+":
            return atom
        bounds = self._bounds()
        if bounds is None:
            return atom
        if isinstance(atom, _Anchor):
            raise BadExpression("an anchor cannot be repeated")
        if self._bounds() is not None:
            raise BadExpression("a repeat cannot be repeated")
        return _Repeat(atom, *bounds)

    def _bounds(self) -> tuple[int, int | None] | None:
        match self._peek():
            case "*":
                self._at += 1
                return 0, None
            case "+":
                self._at += 1
                return 1, None
            case "?":
                self._at += 1
                return 0, 1
            case "{":
                return self._counts()
            case _:
                return None

    def _counts(self) -> tuple[int, int | None]:
        inner, closing, _ = self._pattern[self._at + 1 :].partition("}")
        least, comma, most = inner.partition(",")
        if not closing or not _is_count(least) or not (_is_count(most) or (comma and not most) or not comma):
            raise BadExpression("braces take a count: {3}, {3,} or {3,5}")
        self._at += len(inner) + 2
        low = int(least)
        high = None if comma and not most else int(most or least)
        if low > _MOST_REPEATS or (high is not None and not low <= high <= _MOST_REPEATS):
            raise BadExpression("the counts in the braces are out of range")
        return low, high

    def _atom(self) -> _Node:
        character = self._next()
        match character:
            case "(":
                return self._group()
            case "[":
                return self._bracket()
            case ".":
                return _Characters(frozenset(), negated=True)
            case "^":
                return _Anchor(_START)
            case "$":
                return _Anchor(_END)
            case "\\":
                escaped = self._next()
                if escaped.isalnum():
                    raise BadExpression(f"\\{escaped} means nothing in an extended regular expression")
                return self._literal(escaped)
            case "*" | "+" | "?" | "{":
                raise BadExpression(f"there is nothing that {character} could repeat")
            case _:
                return self._literal(character)

    def _group(self) -> _Node:
        self._depth += 1
        if self._depth > MOST_NESTED:
            raise BadExpression("its groups are nested too deeply")
        self.groups += 1
        number = self.groups
        inner = self._choice()
        if self._peek() != ")":
            raise BadExpression("a parenthesis is not closed")
        self._at += 1
        self._depth -= 1
        return _Group(number, inner)

    def _bracket(self) -> _Node:
        negated = self._peek() == "^"
        self._at += negated
        chosen: set[str] = set()
        is_first = True
        while is_first or self._peek() != "]":
            is_first = False
            first = self._next()
            if first == "[" and self._peek() and self._peek() in ":.=":
                chosen.update(self._class())
            elif self._peek() == "-" and self._pattern[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                last = self._next()
                if first > last:
                    raise BadExpression(f"the range {first}-{last} is empty")
                chosen.update(map(chr, range(ord(first), ord(last) + 1)))
            else:
                chosen.add(first)
        self._at += 1
        return self._characters(frozenset(chosen), negated=negated)

    def _class(self) -> str:
        name, closing, _ = self._pattern[self._at + 1 :].partition(":]")
        if self._peek() != ":" or not closing or name not in _CLASSES:
            raise BadExpression("only the classes of POSIX are known, such as [:digit:]")
        self._at += len(name) + 3
        return _CLASSES[name]

    def _literal(self, character: str) -> _Characters:
        return self._characters(frozenset(character), negated=False)

    def _characters(self, chosen: frozenset[str], *, negated: bool) -> _Characters:
        if self._ignore_case:
            chosen = frozenset(character.lower() for character in chosen)
        return _Characters(chosen, negated)


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 3
