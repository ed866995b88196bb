"""The arithmetic between what was measured and what is quoted."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import samples
from benchmarks.plan import SECTIONS, sections
from benchmarks.push import evaluate
from benchmarks.push_server import address, set_of
from benchmarks.report import GOALS, ratios, table
from benchmarks.samples import Sample, Samples


def _sample(*latencies: float, cpu: float = 0.0) -> Sample:
    return Sample(latencies=latencies, rps=1 / latencies[0], client_cpu=cpu, envoy_cpu=cpu, upstream_cpu=cpu)


def test_a_ratio_is_the_median_of_the_rounds_own_ratios() -> None:
    measured = Samples()
    for own, base in ((1.0, 2.0), (30.0, 40.0), (9.0, 10.0)):
        measured.add("own", _sample(own))
        measured.add("base", _sample(base))
    ratio = measured.ratio("own", "base", samples.p50)
    assert ratio is not None
    assert (ratio.low, ratio.value, ratio.high) == (0.5, 0.75, 0.9)


def test_a_case_that_was_not_measured_gives_no_ratio() -> None:
    measured = Samples()
    measured.add("own", _sample(1.0))
    assert measured.ratio("own", "base", samples.p50) is None
    assert ratios(measured, ()) == {}


def test_cpu_of_a_request_counts_every_process() -> None:
    assert _sample(1.0, 1.0, cpu=2.0).cpu == 3.0


def test_segments_of_a_request_and_where_the_kernel_does_not_count_them() -> None:
    sample = replace(_sample(1.0, 1.0), sent=5)
    assert sample.segments == 2.5
    measured = Samples()
    measured.add("own", sample)
    measured.add("base", replace(sample, sent=4))
    measured.add("uncounted", replace(sample, sent=0))
    ratio = measured.ratio("own", "base", samples.segments)
    assert ratio is not None
    assert ratio.value == 1.25
    assert measured.ratio("own", "uncounted", samples.segments) is None


@given(st.lists(st.floats(0, 1), min_size=1), st.floats(0, 1))
def test_percentile_is_one_of_the_values_and_grows_with_the_share(values: list[float], share: float) -> None:
    found = samples.percentile(values, share)
    assert found in values
    assert samples.percentile(values, 0) <= found <= samples.percentile(values, 1)


def test_every_ratio_belongs_to_one_section_and_has_a_goal() -> None:
    names = [name for section in SECTIONS.values() for name in section]
    assert sorted(names) == sorted(GOALS)


def test_only_takes_sections_and_ratios() -> None:
    assert sections([]) == list(SECTIONS)
    assert sections(["import_ms", "sync"]) == ["sync", "import"]
    with pytest.raises(ValueError, match="neither a section nor a ratio"):
        sections(["speed"])


def test_the_delay_of_a_push_is_its_worst_call_less_the_ordinary_one() -> None:
    calls = [(0.0, 0.1), (0.2, 0.1), (0.4, 0.3), (0.7, 0.5), (1.2, 0.1)]
    push = evaluate(0.5, 0.9, calls)
    assert push.effect == pytest.approx(0.4)
    assert push.delay == pytest.approx(0.4)
    assert push.quiet == pytest.approx(0.0)


@given(st.sampled_from(["a", "b"]), st.integers(0, 2_000_000))
def test_an_endpoints_address_tells_its_set_and_index(which: str, index: int) -> None:
    assert set_of(address(which, index)) == (which, index)


def test_table_lines_up_columns() -> None:
    rows = [{"case": "a", "us": 1.5}, {"case": "long", "us": 10}]
    assert table(rows).splitlines() == ["case   us", "a     1.5", "long   10"]
