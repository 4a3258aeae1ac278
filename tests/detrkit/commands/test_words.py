"""Command lines of a config, options and `key=value`, which may come in any order."""

import pytest

from detrkit.commands import ablate, benchmark, compare
from detrkit.commands.command_line import parse
from detrkit.commands.error_line import as_options


@pytest.mark.parametrize(
    "words",
    [
        ["dino_tiny", "a.b=1", "--no-baseline", "~c", "--seeds", "3"],
        ["--seeds", "3", "--no-baseline", "--config-file", "dino_tiny", "a.b=1", "~c"],
    ],
)
def test_order_does_not_matter(words):
    args = parse(ablate.parser(), words)
    assert (args.config, args.overrides, args.seeds, args.no_baseline) == ("dino_tiny", ["a.b=1", "~c"], [3], True)
    assert args.words == words


def test_overrides_after_an_option_of_many_words():
    """`--parts step train.device=cpu` means one part and one override; a grid keeps its own `name=values`."""
    args = parse(benchmark.parser(), ["--parts", "step", "train.device=cpu"])
    assert args.parts == ["step"] and args.overrides == ["train.device=cpu"]
    args = parse(ablate.parser(), ["x.y=1", "--grid", "k=1,2"])
    assert args.grid == ["k=1,2"] and args.overrides == ["x.y=1"] and args.config == "align_detr_tiny"


@pytest.mark.parametrize("command, words", [(compare, ["dino_tiny"]), (ablate, ["dino_tiny", "align_detr_tiny"])])
def test_a_word_too_many_is_an_error(command, words, capsys):
    with pytest.raises(SystemExit):
        parse(command.parser(), words)
    assert f"{words[-1]} is not a change as key=value" in capsys.readouterr().err


@pytest.mark.parametrize(
    "said, printed",
    [
        ("batch=0: at least 1", "--batch 0: at least 1"),
        ("a.json is there already: replace it by force=True", "a.json is there already: replace it by --force"),
        ("give them by classes=", "give them by --classes"),
        ("train.output=x and num_classes=3, +output=y, http://a/?format=b", None),
    ],
)
def test_errors_of_the_library_name_options(said, printed):
    """Protects both kinds of users: a function names its arguments, a command its options; keys of configs stay."""
    assert as_options(said) == (printed or said)
