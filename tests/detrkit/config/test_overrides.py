"""Values of overrides that hold text: `detrkit.config.overrides`, through `load_config` as every command calls it."""

import re
import shlex
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from detrkit.config.load import load_config, load_configs
from detrkit.config.overrides import quoted

CONFIG = "align_detr_tiny"
TRAIN = str(Path(__file__).resolve().parents[3] / "configs" / "common" / "train.py")  # loads in milliseconds
# Whatever Linux takes as a file's name. Quotes around all of it, null and ${...} keep their meaning; ??? is OmegaConf's
# word for a value that is missing.
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
LIKELY = st.text("ab1 ,#=()[]{}'\"~$@%&;:!?*+\\/.-äß数", min_size=1)
PATHS = st.one_of(NAMES, LIKELY).filter(
    lambda path: not re.match(r"\s*(['\"]|null\s*$|\?\?\?\s*$)", path, re.IGNORECASE) and "${" not in path
)


@settings(max_examples=400, deadline=None)
@given(PATHS)
def test_a_path_arrives_as_it_was_written(path):
    """A folder may have any name: it is used, not refused, and not another one in its place."""
    assert load_config(TRAIN, [f"train.output_dir={path}"]).train.output_dir == path


@settings(max_examples=200, deadline=None)
@given(st.one_of(NAMES, LIKELY).filter(lambda text: "${" not in text and text != "???"))
def test_quoted_text_arrives_as_it_was_written(text):
    """Quotes are the way to write a name that is `null` or stands in quotes itself."""
    assert load_config(TRAIN, [f"train.output_dir={quoted(text)}"]).train.output_dir == text


@pytest.mark.parametrize(
    "name",
    [
        "lr=1e-4,bs=2", "run (2)", "exp#3", "a b", "v1.0+x", "net[1]", "[1]", "täst", "数据", "100%", "it's", "a:b",
        "$x", "~y", "1e5", "007", "true", "{a: b}", "C:\\data\\x", "a\\,b", " a ",
    ],
)  # fmt: skip
def test_names_of_folders_that_people_use(name):
    """The same in every key that names a file or a folder, also where the config has none yet."""
    keys = ["train.output_dir", "train.init_checkpoint", "dataloader.evaluator.output_dir", "train.wandb.params.dir"]
    cfg = load_config(CONFIG, [f"{key}={name}" for key in keys])
    assert [OmegaConf.select(cfg, key) for key in keys] == [name] * len(keys)


def test_a_folder_of_several_configs():
    first, second = load_configs([CONFIG, "dino_tiny"], ["train.output_dir=lr=1e-4,bs=2"])
    assert first.train.output_dir == second.train.output_dir == "lr=1e-4,bs=2"


def test_the_grammar_keeps_its_meaning():
    """null, references and quotes in all keys; numbers, lists and switches in those that are no paths."""
    overrides = [
        "train.init_checkpoint=null",
        "train.output_dir=${train.device}/x",
        "dataloader.train.dataset.names=[a,b]",
        "train.wandb.params.dir='a b'",
        "train.wandb.params.name=2024",
        "+notes.author=José",
    ]
    cfg = load_config(CONFIG, ["train.device=cpu", *overrides])
    assert cfg.train.init_checkpoint is None and cfg.train.output_dir == "cpu/x"
    assert cfg.dataloader.train.dataset.names == ["a", "b"]
    assert cfg.train.wandb.params == {**cfg.train.wandb.params, "dir": "a b", "name": 2024}
    assert cfg.notes.author == "José"
    assert load_config(CONFIG, ["train.init_checkpoint=''"]).train.init_checkpoint == ""
    assert load_config(CONFIG, ["train.init_checkpoint="]).train.init_checkpoint == ""


def test_a_name_that_is_no_path_may_have_any_letters():
    """`align-detr train --data 数据` registers 数据_train."""
    cfg = load_config(CONFIG, ["dataloader.train.dataset.names=数据_train"])
    assert cfg.dataloader.train.dataset.names == "数据_train"


@pytest.mark.parametrize(
    "override, said, as_text",
    [
        ("dataloader.train.dataset.names=[é,b]", "cannot read the override", "[é,b]"),
        ("dataloader.train.dataset.names=a,b", "as a list: 'dataloader.train.dataset.names=[a,b]'", "a,b"),
        ("optimizer.betas=[0.9,", "cannot read the override", None),
    ],
)
def test_what_may_be_a_list_is_refused_with_the_quoted_form(override, said, as_text):
    """The form in the message can be copied to a shell, and means what it says."""
    with pytest.raises(ValueError) as error:
        load_config(CONFIG, [override])
    message = str(error.value)
    assert said in message and "\n" not in message
    (corrected,) = shlex.split(message.rpartition("as text: ")[2])
    if as_text is not None:
        assert load_config(CONFIG, [corrected]).dataloader.train.dataset.names == as_text


@pytest.mark.parametrize(
    "override, said",
    [
        ("train.max_iter=é", "train.max_iter is a number, not é"),
        ("train.amp.enabled=yes!", "train.amp.enabled is true or false, not yes!"),
        ("train.outputdir=é", "did you mean train.output_dir?"),
    ],
)
def test_other_mistakes_are_told_as_before(override, said):
    """Text where a number belongs, or a key that is not there, is more than a sign that the grammar does not have."""
    with pytest.raises(ValueError, match=re.escape(said)):
        load_config(CONFIG, [override])
