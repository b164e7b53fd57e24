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
    ("value", "interval", "higher_is_more", "expected"),
    [
        (976, None, True, True),
        (975, None, True, False),
        (1200, (970, 1300), True, False),
        (1200, (980, 1300), True, True),
        (24, None, False, True),
        (24, (0, 30), False, False),
        (1200, None, False, False),
    ],
)
def test_a_value_beats_chance_with_all_of_its_interval_on_the_right_side(value, interval, higher_is_more, expected):
    measure = Measure("m", value, (DRAWS,), interval, higher_is_more=higher_is_more)
    assert measure.beats(DRAWS) is expected
    assert (measure.verdict == "better than chance") is expected


def test_one_unbeaten_null_is_enough_to_be_no_better_than_it():
    measure = Measure("m", 2.0, (Null("low", (1.0,)), Null("high", (3.0,))))
    assert measure.verdict == "no better than high"
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
