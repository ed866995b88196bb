"""URI templates of Envoy (extensions.path.match.uri_template.v3): `/users/{id}/**` as a regular expression.

A template is `/` and segments between slashes: a literal, `*` (one segment), `**` (any rest, at most one and the last glob), or a
variable: `{name}` (one segment), `{name=pattern}` with segments of its own. After the last glob or variable a literal suffix
may follow. The names of variables differ, at most 5 of them, of 1 .. 16 characters.
"""

from __future__ import annotations

import re

from meshlib.runtime import regex

__all__ = ["TemplateError", "compile_template"]

_CHARACTERS = "a-zA-Z0-9-._~%!$&'()+,;:@=*"
_LITERAL = re.compile(rf"[{_CHARACTERS}]+", re.ASCII)
_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9_]*", re.ASCII)
_PRINTABLE = re.compile(r"/[!-~]*", re.ASCII)
_SPECIAL = re.compile(r"[$()+.]")  # and not *, which Envoy leaves as it is
_SEGMENT = f"[{_CHARACTERS}]+"
_REST = f"[{_CHARACTERS}/]*"
_MOST_VARIABLES = 5
_LONGEST_NAME = 16


class TemplateError(ValueError):
    """What is wrong with a template."""

    @property
    def reason(self) -> str:
        return str(self)


def compile_template(template: str) -> regex.Regex:
    """The expression that the whole path must match. Raises TemplateError."""
    try:
        return regex.compile(_Parser(template).expression())
    except regex.RegexError as error:
        raise TemplateError(error.reason) from None


class _Parser:
    def __init__(self, template: str) -> None:
        if not _PRINTABLE.fullmatch(template):
            raise TemplateError(f"{template!r} must begin with / and hold printable ASCII only")
        self._rest = template[1:]
        self._names: set[str] = set()
        self._open_ended = False

    def expression(self) -> str:
        parts: list[str] = []
        suffix = ""
        while self._rest:
            parts.append(self._segment())
            if self._rest == "/":
                parts.append("")
                break
            if self._rest.startswith("/"):
                self._rest = self._rest[1:]
            elif self._rest:
                suffix = self._literal()
                if self._rest:
                    raise TemplateError("nothing may follow what follows a glob or a variable in one segment")
        return "/" + "/".join(parts) + suffix

    def _segment(self) -> str:
        if self._rest.startswith("*"):
            return self._glob()
        return self._variable() if self._rest.startswith("{") else self._literal()

    def _glob(self) -> str:
        if self._open_ended:
            raise TemplateError("no * or variable may follow **")
        self._open_ended = self._rest.startswith("**")
        self._rest = self._rest[2 if self._open_ended else 1 :]
        return _REST if self._open_ended else _SEGMENT

    def _literal(self) -> str:
        literal, slash, rest = self._rest.partition("/")
        if not _LITERAL.fullmatch(literal):
            raise TemplateError(f"{literal!r} is not a valid segment")
        self._rest = slash + rest
        return _SPECIAL.sub(r"\\\g<0>", literal)

    def _variable(self) -> str:
        inside, brace, after = self._rest[1:].partition("}")
        if not brace:
            raise TemplateError(f"{self._rest!r} has no closing brace")
        name, equals, pattern = inside.partition("=")
        self._declare(name)
        if not equals:
            self._rest = "*"
            expression = self._glob()
        else:
            self._rest = pattern
            expression = self._pattern()
        self._rest = after
        return f"({expression})"

    def _declare(self, name: str) -> None:
        if not _NAME.fullmatch(name) or len(name) > _LONGEST_NAME:
            raise TemplateError(
                f"{name!r} is not the name of a variable: 1 .. {_LONGEST_NAME} letters, digits and _"
            )
        if name in self._names:
            raise TemplateError(f"the variable {name!r} stands twice")
        self._names.add(name)
        if len(self._names) > _MOST_VARIABLES:
            raise TemplateError(f"there may be at most {_MOST_VARIABLES} variables")

    def _pattern(self) -> str:
        if not self._rest:
            raise TemplateError("a variable has an empty pattern")
        parts = []
        while self._rest:
            parts.append(self._glob() if self._rest.startswith("*") else self._literal())
            if self._rest:
                if not self._rest.startswith("/") or self._rest == "/":
                    raise TemplateError(f"{self._rest!r} can't follow in the pattern of a variable")
                self._rest = self._rest[1:]
        return "/".join(parts)
