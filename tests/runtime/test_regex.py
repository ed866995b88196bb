"""Regular expressions, with google-re2 and without."""

from __future__ import annotations

import contextlib
import pickle
import re
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.runtime import regex
from meshlib.runtime.backtracking import Backtracking
from meshlib.runtime.regex import Regex, RegexError

assert regex.HAS_RE2, "make test installs google-re2"

Compile = Callable[..., Regex]


@pytest.fixture(params=["re2", "standard library"])
def compiler(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Compile]:
    regex.compile.cache_clear()
    if request.param != "re2":
        monkeypatch.setattr(regex, "re2", None)
    yield regex.compile
    regex.compile.cache_clear()


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("/a", ["/a"], ["/a/", "x/a", ""]),
        (r"/v1\.0", ["/v1.0"], ["/v1x0"]),
        ("/a.*", ["/a", "/abc"], ["/b", "x/a"]),
        (".*/z", ["/z", "/a/z"], ["/z/"]),
        (".*mid.*", ["mid", "amidst"], ["mi d"]),
        ("^/a$", ["/a"], ["/a/b"]),
        ("/users/[0-9]+", ["/users/12"], ["/users/", "/users/1x"]),
        (r"[^/]+\.example\.com", ["a.example.com"], ["a/b.example.com", ".example.com"]),
        ("(?i)accept", ["ACCEPT", "Accept"], ["acce"]),
        ("(foo|bar)+", ["foobarfoo"], ["fooba"]),
        ("", [""], ["a"]),
        (r"\d{3}-\d{2,4}", ["123-45", "123-4567"], ["12-45", "123-45678"]),
    ],
)
def test_full_match(compiler: Compile, pattern: str, yes: list[str], no: list[str]) -> None:
    compiled = compiler(pattern)
    assert [compiled.fullmatch(text) for text in yes] == [True] * len(yes)
    assert [compiled.fullmatch(text) for text in no] == [False] * len(no)


@pytest.mark.parametrize(
    "pattern", [r"(a)\1", "(?=a)b", "(?!a)b", "(?<=a)b", "(", "a++", "(?>a)b", "[", "*a", r"a{2000}"]
)
def test_what_re2_refuses_is_refused_in_both_modes(compiler: Compile, pattern: str) -> None:
    with pytest.raises(RegexError) as caught:
        compiler(pattern)
    assert caught.value.reason


HOSTILE = [
    "(a+)+$",
    "(a|a)*b",
    "(a*)*b",
    "(.*a){20}b",
    "(x+x+)+y",
    "(a?){40}a{40}",
    ".*a.*a.*a.*b",
    r"(\w+\s?)*!",
]


@pytest.mark.parametrize("pattern", HOSTILE)
def test_a_hostile_pattern_runs_in_linear_time_with_re2(pattern: str) -> None:
    text = "a" * 50_000
    started = time.process_time()
    regex.compile(pattern).fullmatch(text + "!")
    assert time.process_time() - started < 5  # a backtracking matcher needs longer than the universe has


@pytest.mark.parametrize("pattern", HOSTILE)
def test_a_hostile_pattern_is_refused_without_re2(monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    monkeypatch.setattr(regex, "re2", None)
    regex.compile.cache_clear()
    with pytest.raises(RegexError, match=r"meshlib-xds\[re2\]"):
        regex.compile(pattern)


@pytest.mark.parametrize(
    "pattern", ["((){1000}){1000}", "(((a{9}){9}){9}){9}", "(" * 900 + ")" * 900, "a" * 5000]
)
def test_the_check_itself_is_bounded(pattern: str) -> None:
    started = time.process_time()
    with pytest.raises(RegexError):
        Backtracking(pattern, unanchored=True)
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "pattern", ["[[:alpha:]]+", r"a\z", r"\pL", "a{,3}", r"a\Z", "(?P<n>a)(?P=n)", "(?#c)a", "(?a)b"]
)
def test_what_python_reads_otherwise_is_refused_without_re2(pattern: str) -> None:
    with pytest.raises(RegexError):
        Backtracking(pattern, unanchored=False)


@pytest.mark.parametrize(
    ("pattern", "substitution", "text", "result"),
    [
        ("^/service/([^/]+)(/.*)$", r"\2/instance/\1", "/service/foo/v1/api", "/v1/api/instance/foo"),
        ("one", "two", "/xxx/one/yyy/one/zzz", "/xxx/two/yyy/two/zzz"),
        ("a*", "X", "baac", "XbXcX"),
        ("", "-", "ab\u00e9", "-a-b-\u00e9-"),
        ("(a)(b)?", r"[\2\1]", "ab a", "[ba] [a]"),
        ("a", r"\\\0", "cat", r"c\at"),
        ("x", "y", "no match", "no match"),
    ],
)
def test_sub(compiler: Compile, pattern: str, substitution: str, text: str, result: str) -> None:
    assert compiler(pattern, unanchored=True).sub(substitution, text) == result


@pytest.mark.parametrize(("substitution", "reason"), [(r"\1", "group 1"), (r"\z", "digit"), ("\\", "digit")])
def test_a_wrong_substitution(compiler: Compile, substitution: str, reason: str) -> None:
    with pytest.raises(RegexError, match=reason):
        compiler("a", unanchored=True).check_substitution(substitution)


def test_search_needs_to_be_asked_for(compiler: Compile) -> None:
    assert compiler("b", unanchored=True).search("abc")
    assert not compiler("d", unanchored=True).search("abc")
    with pytest.raises(RegexError):
        compiler("b").search("abc")


def test_equal_by_pattern_and_picklable() -> None:
    first = regex.compile("/a/[0-9]+")
    assert first == pickle.loads(pickle.dumps(first))
    assert len({first, regex.compile("/a/[0-9]+", unanchored=True)}) == 1
    assert first != regex.compile("/b")


pieces = st.sampled_from(
    ["a", "b", ".", "[ab]", "a*", "b+", "(a|b)", "a?", "(ab)*", "[^a]", "x{1,2}", "(a|ab)"]
)


@given(st.lists(pieces, max_size=6).map("".join), st.text("abx", max_size=8))
def test_both_engines_agree(pattern: str, text: str) -> None:
    expected = re.fullmatch(pattern, text) is not None
    assert regex.compile(pattern).fullmatch(text) is expected
    try:
        engine = Backtracking(pattern, unanchored=False)
    except RegexError:
        return
    assert engine.fullmatch(text) is expected


@given(st.lists(pieces, max_size=5).map("".join), st.text("abx\u00e9", max_size=8))
def test_both_engines_substitute_alike(pattern: str, text: str) -> None:
    try:
        engine = Backtracking(pattern, unanchored=True)
    except RegexError:
        return
    assert engine.sub(("<", 0, ">"), text) == regex.compile(pattern, unanchored=True).sub(r"<\0>", text)


@given(st.text())
def test_any_text_as_a_pattern_compiles_or_is_refused(pattern: str) -> None:
    with contextlib.suppress(RegexError):
        regex.compile(pattern, unanchored=True)
    with contextlib.suppress(RegexError):
        Backtracking(pattern, unanchored=True)
