"""Print a script that makes a shell complete the commands, their options, and the names of configs.

    eval "$(align-detr completion bash)"    # in ~/.bashrc; `zsh` in ~/.zshrc

What there is to complete is in the script: the Tab key waits for no import of PyTorch, as it would with argcomplete,
and starting a shell builds no parsers, as it would with shtab. The options are read from the source.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from align_detr._platform import EMBEDDED_ROOT
from detrkit.commands.main import COMMANDS
from detrkit.config.catalogue import config_files

# detectron2's own training script has the same options.
TRAINING_OPTIONS = EMBEDDED_ROOT / "detectron2" / "engine" / "defaults.py"

BASH = """\
_align_detr() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} words=
    if ((COMP_CWORD == 1)); then
        words="{commands}"
    else
        case ${{COMP_WORDS[1]}} in
{cases}
        esac
        [[ $word == -* ]] || words="{configs}"
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _align_detr align-detr
"""
ZSH = "autoload -U +X bashcompinit && bashcompinit\n"


def options_in(source: Path) -> list[str]:
    """The long options that calls of `add_argument` in a file name."""
    calls = [node for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    added = [call for call in calls if getattr(call.func, "attr", "") == "add_argument"]
    values = [word.value for call in added for word in call.args if isinstance(word, ast.Constant)]
    return [value for value in values if value.startswith("--")]


def options_of(name: str) -> list[str]:
    module = COMMANDS[name].module or name.replace("-", "_")
    found = options_in(Path(find_spec(f"detrkit.commands.{module}").origin))
    return ["--help", *(options_in(TRAINING_OPTIONS) if module == "train" else []), *found]


def script(shell: str) -> str:
    cases = "\n".join(f"            {name}) words=\"{' '.join(options_of(name))}\" ;;" for name in COMMANDS)
    text = BASH.format(commands=" ".join(COMMANDS), cases=cases, configs=" ".join(config_files()))
    return ZSH + text if shell == "zsh" else text


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shell", choices=("bash", "zsh"))
    print(script(parser.parse_args(argv).shell), end="")
