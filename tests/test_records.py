# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Tables and the places that carry them."""

import pytest

from sparsejepa_hf.records import mean_and_std, percent, render_into, table


def test_a_table_has_a_line_for_the_header_the_rule_and_every_row():
    assert table(["a", "b"], [["1", "2"], ["x|y", ""]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n| x\\|y |  |"
    with pytest.raises(ValueError, match="has 1 cells"):
        table(["a", "b"], [["1"]])


def test_shares_are_shown_in_per_cent():
    assert percent(0.1234) == "12.3" and percent(None) == "–" and percent(0.5, 0) == "50"
    assert mean_and_std(0.1, 0.02) == "10.0 ± 2.0" and mean_and_std(0.1, None) == "10.0"


def test_rendering_twice_is_rendering_once_and_leaves_the_rest_alone():
    text = "before\n<!-- results/x.json -->\nold\n<!-- end -->\nafter\n<!-- results/y.json -->\nother\n<!-- end -->\n"
    once = render_into(text, "x.json", "new")
    assert once == text.replace("old", "new")
    assert render_into(once, "x.json", "new") == once
    with pytest.raises(ValueError, match="no marks"):
        render_into(text, "z.json", "new")
    with pytest.raises(ValueError, match="no marks"):
        render_into("<!-- end --> <!-- results/x.json -->", "x.json", "new")
