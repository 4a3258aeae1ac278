"""Train with a grid of settings, several seeds each, and tell differences from noise.

    align-detr ablate [key=value ...] [--grid alpha=0,0.25,0.5 k=1,2,3 ... [--full] | --chain alpha=0 k=1 ...] \\
        [--seeds 0 1 2] [--max-iter N] [--jobs N] [--config-file CONFIG] [--baseline CONFIG | --no-baseline] \\
        [--output FOLDER]

Each value of the grid is tried on its own, with all else as in CONFIG; `--full` tries all combinations; `--chain`
changes one option after the other and keeps what it changed, as in papers' tables of parts. A short name is an option
of the criterion: alpha is model.criterion.alpha. Others are written in full: optimizer.lr=1e-4,2e-4. The baseline is
another config that is trained alike. `key=value` comes first and goes for all runs; what it says of model.criterion,
not for the baseline.

Every run is an `align-detr train` in a folder of its own. Interrupted or failed, the same command goes on where it
was: finished runs are kept, others resume from their last checkpoint. Writes results.json, table.md and ablation.png.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.utils import get_object
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf

from align_detr.modeling.losses import CLASSIFICATION_LOSSES
from detrkit.commands.command_line import finish
from detrkit.config.catalogue import find_config
from detrkit.config.load import load_config
from detrkit.experiments import seeds
from detrkit.experiments.runs import (
    METRIC,
    METRICS,
    Run,
    Setting,
    add_options,
    carry_out,
    check_counts,
    make_run,
    parse_words,
    relative,
)

CONFIG, BASELINE = "align_detr_tiny", "dino_tiny"
CRITERION = "model.criterion."
GRID = (
    "alpha=0,0.25,0.5,0.75",
    "k=1,2,3",
    "tau=0.5,1.5,3,1000",
    "gamma=1,2,3",
    f"loss_class_type={','.join(CLASSIFICATION_LOSSES)}",
)
SYMBOLS = {"alpha": "α", "tau": "τ", "gamma": "γ"}

DEFAULT, PLAIN = "default", "baseline"


def parse_grid(
    words: Sequence[str], option: str = "--grid", form: str = "name=value,value,..."
) -> dict[str, list[str]]:
    """`["k=1,2"]` as `{"model.criterion.k": ["1", "2"]}`.

    Raises:
        ValueError: a word is of another form, or names what another one does.
    """
    grid: dict[str, list[str]] = {}
    for word in words:
        name, equals, values = word.partition("=")
        if not equals or not re.fullmatch(r"[\w.]+", name) or not all(values.split(",")):
            raise ValueError(f"{option} takes {form}, not {word}")
        key = name if "." in name else CRITERION + name
        if key in grid:
            raise ValueError(f"{option} has {name} twice")
        grid[key] = list(dict.fromkeys(values.split(",")))
    return grid


def parse_chain(words: Sequence[str]) -> dict[str, list[str]]:
    """`["k=1", "tau=2"]` as `parse_grid` has them.

    Raises:
        ValueError: as there, or a word has several values.
    """
    chain = parse_grid(words, "--chain", "name=value")
    if several := [f"{key}={','.join(values)}" for key, values in chain.items() if len(values) > 1]:
        raise ValueError(f"--chain takes one value of each, not {several[0]}")
    return chain


def default_of(cfg: DictConfig, key: str) -> object:
    """The config's value at `key`, or the default of the constructor's argument that `key` names.

    Raises:
        ValueError: neither is there.
    """
    value = OmegaConf.select(cfg, key)
    if value is not None:
        return value
    parent, _, leaf = key.rpartition(".")
    target = (OmegaConf.select(cfg, parent) or {}).get("_target_")
    if target is not None:
        target = get_object(target) if isinstance(target, str) else target
        for cls in inspect.getmro(target) if inspect.isclass(target) else (target,):
            parameter = inspect.signature(cls).parameters.get(leaf)
            if parameter is not None and parameter.default is not parameter.empty:
                return parameter.default
    raise ValueError(f"--grid: the config has no {key}")


def is_same(written: str, value: object) -> bool:
    """Whether a value as written on the command line is `value`: 2 is 2.0."""
    try:
        return float(written) == float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return written.lower() == str(value).lower()


def make_settings(
    cfg: DictConfig, config: Path, grid: Mapping[str, Sequence[str]], full: bool, baseline: Path | None
) -> list[Setting]:
    """The baseline, the default, and what the grid adds to it: single changes, or with `full` their combinations."""
    changed = {
        key: [value for value in values if not is_same(value, default_of(cfg, key))] for key, values in grid.items()
    }
    if full:
        # None stands for the default, which belongs to the product only where the grid has it.
        axes = [
            [None] * (len(changed[key]) < len(values)) + [(key, value) for value in changed[key]]
            for key, values in grid.items()
        ]
        combinations = [tuple(filter(None, combination)) for combination in itertools.product(*axes)]
    else:
        combinations = [((key, value),) for key, values in changed.items() for value in values]
    changing = [Setting(name_of(changes), config, changes) for changes in combinations if changes]
    return always(config, baseline) + changing


def make_links(
    cfg: DictConfig, config: Path, chain: Mapping[str, Sequence[str]], baseline: Path | None
) -> list[Setting]:
    """The baseline, the default, and that with the first change of the chain, with the first two, and so on.

    Raises:
        ValueError: the config has one of them already.
    """
    changes = [(key, value) for key, (value,) in chain.items()]
    if idle := [f"{key}={value}" for key, value in changes if is_same(value, default_of(cfg, key))]:
        raise ValueError(f"--chain: {idle[0]} is what the config has already")
    links = [tuple(changes[: count + 1]) for count in range(len(changes))]
    return always(config, baseline) + [Setting(name_of(link), config, link) for link in links]


def always(config: Path, baseline: Path | None) -> list[Setting]:
    return [*([Setting(PLAIN, baseline)] if baseline else []), Setting(DEFAULT, config)]


def name_of(changes: Sequence[tuple[str, str]]) -> str:
    return " ".join(f"{key.removeprefix(CRITERION)}={value}" for key, value in changes)


def plan(args: argparse.Namespace, settings: Sequence[Setting]) -> list[Run]:
    """All runs, seed by seed, so that every setting has a run early; finished ones with their results.

    Raises:
        ValueError: a folder holds a run of another config.
    """
    of_others = [word for word in args.opts if not word.lstrip("+~").startswith(CRITERION)]
    return [
        make_run(args.output, setting, seed, of_others if setting.name == PLAIN else args.opts, args.max_iter)
        for seed, setting in itertools.product(args.seeds, settings)
    ]


def summarize(runs: Sequence[Run]) -> dict:
    """`seeds.summarize` of all settings against the default, and what each setting is."""
    settings = {run.setting.name: run.setting for run in runs}
    results = {name: [run.result for run in runs if run.setting.name == name and run.result] for name in settings}
    summary = seeds.summarize(results, DEFAULT, list(METRICS), METRIC)
    for row in summary["settings"]:
        setting = settings[row["name"]]
        row |= {"config": relative(setting.config), "changes": dict(setting.changes)}
    return summary


def make_table(summary: Mapping) -> str:
    """Markdown, with what one needs to know to read it."""
    rows = summary["settings"]
    return f"{seeds.table(rows, [title_of(row) for row in rows], METRICS, 'AP − default')}\n\n{note(summary)}\n"


def title_of(row: Mapping) -> str:
    if row["name"] in (DEFAULT, PLAIN):
        return f"{row['name']} ({Path(row['config']).stem})"
    return ", ".join(f"{symbol(key)} = {value}" for key, value in row["changes"].items())


def symbol(key: str) -> str:
    name = key.removeprefix(CRITERION)
    return SYMBOLS.get(name, name)


def note(summary: Mapping) -> str:
    text = "Mean ± standard deviation over n seeds, of the last evaluation; AP in %."
    if summary["pooled_deviation"] is None:
        return f"{text} With one seed each, nothing tells a difference from noise."
    if len({row["n"] for row in summary["settings"]}) > 1:
        text += " Where n is smaller, runs failed or are still to come."
    compared = sum(row["difference"] is not None for row in summary["settings"])
    text += (
        f" The last column has the difference of mean AP from the default and its {seeds.CONFIDENCE:.0%} interval"
        f" (Student's t; deviation between seeds pooled over all settings: {summary['pooled_deviation']:.2f},"
        f" {summary['degrees_of_freedom']} degrees of freedom); within noise: the interval contains 0."
    )
    if compared > 1:
        text += f" Of {compared} intervals, {compared * (1 - seeds.CONFIDENCE):.1g} would miss by chance alone."
    return text


def draw(summary: Mapping, defaults: Mapping[str, object], grid: Mapping[str, Sequence[str]]) -> Figure:
    """AP by value, one panel per option."""
    rows = {row["name"]: row for row in summary["settings"]}
    panels = {}
    for key, values in grid.items():
        names = [DEFAULT if is_same(value, defaults[key]) else name_of([(key, value)]) for value in values]
        labels = [value.removesuffix("_loss").replace("_", "\n") for value in values]
        panels[symbol(key)] = [(label, rows[name]) for label, name in zip(labels, names, strict=True)]
    return seeds.draw_panels(panels, rows[DEFAULT], rows.get(PLAIN), list(rows.values()), METRIC, "box AP (%)")


def draw_lines(summary: Mapping, title: str) -> Figure:
    """AP of each setting."""
    rows = summary["settings"]
    return seeds.draw_rows(rows, [title_of(row) for row in rows], METRIC, "box AP (%)", title)


def ablate(args: argparse.Namespace) -> bool:
    """Trains and reports; returns whether all runs succeeded."""
    check_counts(args.seeds, args.jobs, args.max_iter)
    if args.chain and (args.grid or args.full):
        raise ValueError("--chain is instead of --grid and --full")
    grid = parse_chain(args.chain) if args.chain else parse_grid(args.grid or GRID)
    config = find_config(args.config_file)
    cfg = load_config(str(config), args.opts)
    load_config(str(config), [f"{key}={value}" for key, values in grid.items() for value in values])
    baseline = None if args.no_baseline else find_config(args.baseline)
    if args.chain:
        settings = make_links(cfg, config, grid, baseline)
    else:
        settings = make_settings(cfg, config, grid, args.full, baseline)
    runs = plan(args, settings)

    def report() -> tuple[dict, str]:
        summary = summarize(runs)
        return summary, make_table(summary)

    def figure() -> Figure:
        if args.chain or args.full:
            return draw_lines(summarize(runs), "One after the other" if args.chain else "All combinations")
        return draw(summarize(runs), {key: default_of(cfg, key) for key in grid}, grid)

    return carry_out(
        args,
        runs,
        f"{len(settings)} settings x {len(args.seeds)} seeds of {runs[0].max_iter} iterations",
        {"device": str(cfg.train.device), "max_iter": runs[0].max_iter},
        report,
        figure,
        "ablation.png",
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default=CONFIG, metavar="CONFIG", help="(default: %(default)s)")
    parser.add_argument("--baseline", default=BASELINE, metavar="CONFIG", help="(default: %(default)s)")
    parser.add_argument("--no-baseline", action="store_true")
    parser.add_argument(
        "--grid",
        nargs="+",
        action="extend",
        metavar="NAME=V,V",
        help=f"what to vary (default: {', '.join(word.partition('=')[0] for word in GRID)}, in several values each)",
    )
    parser.add_argument("--full", action="store_true", help="all combinations instead of one change at a time")
    parser.add_argument("--chain", nargs="+", metavar="NAME=V", help="what to change one after the other, and keep so")
    add_options(parser, [0, 1, 2], "output/ablation")
    return parse_words(parser, argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    finish(lambda: ablate(args), "the same command goes on from here")
