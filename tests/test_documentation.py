"""What the documentation points at is there: files, headings, targets of `make`; and its commands are understood."""

import importlib
import re
import subprocess
from pathlib import Path

import pytest

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


PROGRAMS = ("python", "align-detr", "torchrun", "sbatch", "dask", "make", "pip")
# The shell itself reads the block, with functions in place of the programs, which print their words.
SHELL = "".join(f"{name}() {{ printf '%s\\t' {name} \"$@\"; echo; }}\n" for name in PROGRAMS)


class Understood(Exception):
    """In place of what a command does once it has read its command line."""


def commands(page: Path) -> list[list[str]]:
    """The words of each call of a program in the page's blocks of bash."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    done = [subprocess.run(["bash", "-ec", SHELL + b], capture_output=True, text=True, cwd=ROOT) for b in blocks]
    for shell in done:
        assert shell.returncode == 0, shell.stderr
    return [line.rstrip("\t").split("\t") for shell in done for line in shell.stdout.splitlines()]


def calls_of_tools() -> list:
    """`(tool, words)` of each call of tools/*.py; what stands in brackets may be left out, so it is there."""
    calls = []
    for page in PAGES:
        for words in commands(page):
            start = next((i for i, word in enumerate(words) if re.fullmatch(r"tools/\w+\.py", word)), None)
            if start is not None:
                rest = [re.sub(r"^\[(.*)\]$", r"\1", word) for word in words[start + 1 :]]
                calls.append(pytest.param(words[start], rest, id=f"{page.parent.name}-{page.stem}-{len(calls)}"))
    return calls


CALLS = calls_of_tools()


@pytest.mark.parametrize("tool, words", CALLS)
def test_commands_are_understood(tool, words, monkeypatch):
    """Protects a reader who copies a line: the tool is there and knows the options, the configs are there and have the
    keys that it changes. A "…" stands for what the reader fills in."""
    (name,) = re.findall(r"from (detrkit\.commands\.\w+) import main", (ROOT / tool).read_text(encoding="utf-8"))
    module = importlib.import_module(name)

    def understood(*args, **kwargs):
        raise Understood

    for starts in {"errors_in_one_line", "finish", "make"} & set(vars(module)):
        monkeypatch.setattr(module, starts, understood)
    with pytest.raises(Understood):
        module.main(words)

    configs = re.findall(r"[\w/]+/configs/[\w/]+\.py", " ".join(words))
    overrides = [word for word in words if re.match(r"[\w.]+=", word) and "…" not in word]
    for config in configs:
        load_config(str(ROOT / config), overrides if config == configs[0] and "--grid" not in words else [])


def test_the_documentation_has_commands():
    """The test above saw some."""
    assert len(CALLS) > 20
