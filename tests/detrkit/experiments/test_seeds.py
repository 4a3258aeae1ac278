"""What is a difference between trainings with several seeds, and what is noise."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from detrkit.experiments.seeds import PLACES, difference, draw_panels, draw_rows, pooled_deviation, summarize, table

numbers = st.lists(st.integers(0, 1000).map(lambda n: n / 10), min_size=2, max_size=6)


@given(numbers, numbers)
def test_noise_of_two_groups_is_students(values, reference):
    """With two settings the interval is the textbook's two-sample one with equal variances."""
    deviation, freedom = pooled_deviation([values, reference])
    result = difference(values, reference, deviation, freedom)
    expected = stats.ttest_ind(values, reference, equal_var=True)
    if deviation > 1e-6:
        low, high = expected.confidence_interval(0.95)
        assert result["mean"] - result["half_width"] == pytest.approx(low, abs=1e-8)
        assert result["mean"] + result["half_width"] == pytest.approx(high, abs=1e-8)
        if abs(expected.pvalue - 0.05) > 1e-9:
            assert result["within_noise"] == (expected.pvalue > 0.05)


def test_no_noise_without_repetition():
    """One seed each gives a difference and no verdict; a missing reference gives none at all."""
    assert pooled_deviation([[1.0], [2.0], []]) == (None, 0)
    assert difference([1.0], [3.0], None, 0) == {"mean": -2.0, "half_width": None, "within_noise": None}
    assert difference([1.0], [], 1.0, 3) is None


def test_what_is_missing_is_not_made_up():
    """A setting without results, and a metric that some results lack, leave a dash, and the number of results."""
    summary = summarize({"a": [{"AP": 1.0, "x": 2.0}, {"AP": 3.0}], "b": []}, "a", ["AP", "x"], "AP")
    assert [row["n"] for row in summary["settings"]] == [2, 0]
    text = table(summary["settings"], ["A", "B"], {"AP": ("AP", 2), "x": ("X", 1)}, "difference")
    first, second = text.splitlines()[2:]
    assert "2.00 ± 1.41" in first and " 2.0 " in first
    assert second.count("–") == 2
    assert len(draw_rows(summary["settings"], ["A", "B"], "AP", "AP", "").axes[0].get_yticks()) == 1


def test_a_panel_has_room_for_its_values():
    """Labels of many values would cover each other; and names have no order that a line could show."""
    results = {name: [{"AP": 1.0}, {"AP": 2.0}] for name in "abc"} | {"d": []}
    row = {row["name"]: row for row in summarize(results, "a", ["AP"], "AP")["settings"]}
    numbers = [("1", row["a"]), ("2.5", row["b"]), ("1e3", row["d"])]
    names = [("focal", row["a"]), ("quality\nfocal", row["b"]), *[("x", row["c"])] * (PLACES - 2)]
    figure = draw_panels({"k": numbers, "loss": names, "more": numbers}, row["a"], None, list(row.values()), "AP", "AP")
    figure.canvas.draw()
    k, loss, more = figure.axes
    assert [[label.get_text() for label in axes.get_xticklabels()] for axes in (k, loss)] == [
        [text for text, _ in numbers],
        [text for text, _ in names],
    ]
    lines = [[line for line in axes.lines if line.get_marker() == "None"] for axes in figure.axes]
    assert [len(those) for those in lines] == [2, 1, 2]  # the default's is one of them
    assert k.get_position().y0 > loss.get_position().y1 > loss.get_position().y0 > more.get_position().y1
    assert loss.get_position().width == pytest.approx(len(names) / len(numbers) * k.get_position().width, rel=0.2)
