"""What the documentation points at is there: files, headings, targets of `make`; and its commands are understood."""

import re
import subprocess
import tempfile
from functools import partial
from pathlib import Path

import pytest

from detrkit.commands.main import module_of
from detrkit.config.catalogue import config_files
from detrkit.config.load import load_config

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(path for path in ROOT.rglob("*.md") if not set(path.relative_to(ROOT).parts) & {".venv", "output"})
CODE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub links to them."""
    titles = re.findall(r"^#+ (.+)$", CODE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    """Protects a reader from dead links, also after a page or a heading was renamed."""
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_make_has_the_documented_targets():
    """Protects the first command that a newcomer types."""
    code = "".join(re.findall(r"`+[^`]+`+", "".join(page.read_text(encoding="utf-8") for page in PAGES)))
    named = set(re.findall(r"\bmake ([a-z-]+)\b", code))
    assert {"demo", "test", "docs"} <= named
    assert named <= set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


PROGRAMS = ("python", "align-detr", "torchrun", "sbatch", "dask", "make", "pip", "curl", "kill")
# The shell itself reads the block, with functions in place of the programs, which print their words.
# Each line is one write, as a program in the background may print at the same time.
SHELL = "".join(
    f"{name}() {{ local line; printf -v line '%s\\t' {name} \"$@\"; echo \"$line\"; }}\n" for name in PROGRAMS
)


class Understood(Exception):
    """In place of what a command does once it has read its command line."""


def commands(page: Path) -> list[list[str]]:
    """The words of each call of a program in the page's blocks of bash."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    with tempfile.TemporaryDirectory() as folder:  # some blocks write a file
        run = partial(subprocess.run, capture_output=True, text=True, cwd=folder)
        done = [run(["bash", "-ec", SHELL + block]) for block in blocks]
    for shell in done:
        assert shell.returncode == 0, shell.stderr
    return [line.rstrip("\t").split("\t") for shell in done for line in shell.stdout.splitlines()]


def calls_of_commands() -> list:
    """`(name, words)` of each call of `align-detr NAME` or `tools/train_net.py`; words in brackets, which may be left
    out, are among them."""
    calls = []
    for page in PAGES:
        for words in commands(page):
            rest = [re.sub(r"^\[(.*)\]$", r"\1", word) for word in words]
            start = rest.index("tools/train_net.py") if "tools/train_net.py" in rest else None
            if rest[0] == "align-detr" and len(rest) > 1:
                start = 1
            if start is not None:
                number = f"{page.parent.name}-{page.stem}-{len(calls)}"
                calls.append(pytest.param(rest[start], rest[start + 1 :], id=number))
    return calls


CALLS = calls_of_commands()


@pytest.mark.parametrize("name, words", CALLS)
def test_commands_are_understood(name, words, monkeypatch):
    """Protects a reader who copies a line: the command is there and knows the options, the configs are there and have
    the keys that it changes. A "…" stands for what the reader fills in."""
    module = module_of("train" if name == "tools/train_net.py" else name)

    def understood(args):
        raise Understood(args)

    monkeypatch.setattr(module, "run", understood)
    with pytest.raises(Understood) as read:
        (module.train_net if name == "tools/train_net.py" else module.main)(words)
    args = vars(read.value.args[0])
    config = args.get("config") or args.get("config_file") or ""
    overrides = [word for word in args.get("overrides") or args.get("opts") or [] if "…" not in word]
    is_ours = config in config_files() or "/configs/" in config
    if is_ours:
        load_config(config, [] if args.get("grid") else overrides)
    else:
        is_example = config in ("", "CONFIG", "…") or config.startswith("zoo:")
        assert is_example or "/" in config or "." in config, config


def test_the_documentation_has_commands():
    """The test above saw some."""
    assert len(CALLS) > 20
