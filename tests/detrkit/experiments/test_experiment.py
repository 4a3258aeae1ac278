"""An experiment: what it needs installed, and which options it refuses."""

import sys
from pathlib import Path

import pytest

from detrkit.experiments.experiment import Options, Report, run_experiment


def test_without_dask_one_line_names_the_extra(monkeypatch, tmp_path):
    """`pip install align-detr` brings no Dask; whoever starts an experiment learns what to install."""
    monkeypatch.setitem(sys.modules, "dask", None)
    monkeypatch.delitem(sys.modules, "detrkit.experiments.runner", raising=False)
    monkeypatch.delattr("detrkit.experiments.runner", raising=False)
    with pytest.raises(ValueError, match=r'pip install "\.\[experiments\]"'):
        run_experiment([], Report(dict, dict, "plot.png"), Options(tmp_path, [0]), "nothing")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"seeds": [1, 1]}, "--seeds 1 1: expected different numbers"),
        ({"seeds": [-1]}, "--seeds -1"),
        ({"seeds": [1], "jobs": 0}, "--jobs 0: expected 1 or higher"),
        ({"seeds": [1], "max_iter": 0}, "--max-iter 0: expected 1 or higher"),
    ],
)
def test_options_that_make_no_sense(options, message):
    """They are refused when they are made, before anything is trained."""
    with pytest.raises(ValueError, match=message):
        Options(Path("out"), **options)
