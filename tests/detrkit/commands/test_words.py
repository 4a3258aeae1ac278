"""Command lines of a config, options and `key=value`, which may come in any order."""

import pytest

from detrkit.commands import ablate, benchmark, compare
from detrkit.commands.words import parse_words


@pytest.mark.parametrize(
    "words",
    [
        ["dino_tiny", "a.b=1", "--no-baseline", "~c", "--seeds", "3"],
        ["--seeds", "3", "--no-baseline", "--config-file", "dino_tiny", "a.b=1", "~c"],
    ],
)
def test_order_does_not_matter(words):
    args = parse_words(ablate.parser(), words)
    assert (args.config_file, args.opts, args.seeds, args.no_baseline) == ("dino_tiny", ["a.b=1", "~c"], [3], True)
    assert args.words == words


def test_overrides_after_an_option_of_many_words():
    """`--parts step train.device=cpu` means one part and one override; a grid keeps its own `name=values`."""
    args = parse_words(benchmark.parser(), ["--parts", "step", "train.device=cpu"], benchmark.LISTS)
    assert args.parts == ["step"] and args.opts == ["train.device=cpu"]
    args = parse_words(ablate.parser(), ["x.y=1", "--grid", "k=1,2"])
    assert args.grid == ["k=1,2"] and args.opts == ["x.y=1"] and args.config_file == "align_detr_tiny"


@pytest.mark.parametrize("command, words", [(compare, ["dino_tiny"]), (ablate, ["dino_tiny", "align_detr_tiny"])])
def test_a_word_too_many_is_an_error(command, words, capsys):
    with pytest.raises(SystemExit):
        parse_words(command.parser(), words)
    assert f"unrecognized arguments: {words[-1]}" in capsys.readouterr().err
