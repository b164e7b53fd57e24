# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Measures against chance: what counts as better, and what is refused."""

import json
import math

import pytest

from sparsejepa_hf.interpret import Measure, Null, Section


DRAWS = Null("draws", tuple(range(1001)))


def test_the_null_s_interval_leaves_a_fortieth_of_the_draws_on_each_side():
    assert (DRAWS.low, DRAWS.mean, DRAWS.high) == (25, 500, 975)


@pytest.mark.parametrize(
    ("value", "interval", "verdict"),
    [
        (976, None, "more than chance"),
        (975, None, "no more than draws"),
        (1200, (970, 1300), "no more than draws"),
        (1200, (980, 1300), "more than chance"),
        (24, None, "less than chance"),
        (24, (0, 30), "no more than draws"),
        (500, (499, 501), "no more than draws"),
    ],
)
def test_more_than_chance_is_all_of_the_interval_beyond_the_draws(value, interval, verdict):
    assert Measure("m", value, (DRAWS,), interval).verdict == verdict


def test_one_null_that_is_not_exceeded_is_enough():
    measure = Measure("m", 2.0, (Null("low", (1.0,)), Null("high", (3.0,))))
    assert measure.verdict == "no more than high"
    assert Measure("m", 0.5, measure.nulls).verdict == "less than chance"
    assert Measure("m", 2.0).verdict is None


@pytest.mark.parametrize("values", [(), (1.0, math.nan), (math.inf,)])
def test_a_null_needs_finite_draws(values):
    with pytest.raises(ValueError, match="'chance' has the values .* expected finite numbers"):
        Null("chance", values)


def test_a_section_goes_to_json_and_back():
    section = Section("k", "Why?", (Measure("m", 2.0, (DRAWS,), (1.5, 2.5), "nats"),), "Because.", {"curve": [1, 2]})
    found = json.loads(json.dumps(section.to_dict()))
    assert found["measures"][0]["nulls"][0] == {"name": "draws", "mean": 500, "low": 25, "high": 975, "n": 1001}
    assert (
        found["measures"][0]["interval"] == [1.5, 2.5] and found["is_measured"] and found["details"]["curve"] == [1, 2]
    )


def test_rounding_is_no_difference():
    measure = Measure("sum", 0.1 + 0.2, (Null("the same sum", (0.3,)),))
    assert not measure.exceeds(measure.nulls[0]) and measure.verdict.startswith("no more than")
