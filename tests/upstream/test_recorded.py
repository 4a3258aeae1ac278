"""What was recorded on detectron2 and detrex holds here: where they are installed, or else on the engine."""

import json
import sys
from pathlib import Path

import pytest
from hydra.utils import get_object

sys.path.insert(0, str(Path(__file__).parent))

import recording  # noqa: E402

RECORDED = json.loads(recording.RECORDED.read_text(encoding="utf-8"))
FILES = recording.config_files()


def test_the_recording_is_of_every_config_and_name():
    """A new row, or a new import from the packages, is recorded before it lands: `tests/upstream/recording.py`."""
    assert RECORDED["configs"].keys() == FILES.keys()
    assert RECORDED["signatures"].keys() == set(recording.public_names())


@pytest.mark.parametrize("name", FILES)
def test_a_config_resolves_to_the_recorded_values(name):
    """One row is one model, one schedule and one set of data on both platforms."""
    found = json.loads(json.dumps(recording.resolved(FILES[name]), default=str))
    assert found == RECORDED["configs"][name]


@pytest.mark.parametrize("name", RECORDED["models"])
def test_a_model_has_the_recorded_tensors(name):
    """Checkpoints move both ways: as many tensors and parameters, of the same names and shapes."""
    assert recording.tensors(FILES[name]) == RECORDED["models"][name]


@pytest.mark.parametrize("name", sorted(RECORDED["signatures"]))
def test_a_public_name_takes_the_recorded_arguments(name):
    """What the project calls, it may call with the same arguments there: nothing rests on what the engine adds.

    The one option of the engine's own is for weights of other code bases, which detrex itself cannot run exactly:
    `detrkit.weights` refuses them there."""
    found = recording.signature(name)
    if found is not None and not recording.is_upstream():
        found = [parameter for parameter in found if parameter != "inverse_sigmoid_eps=0.001"]
    assert found == RECORDED["signatures"][name]


@pytest.mark.parametrize("name", RECORDED["saved"])
def test_a_saved_config_names_what_is_here(name):
    """The config.yaml of a training there is read here: exported graphs are made on the engine wherever one trained."""
    assert callable(get_object(name))
