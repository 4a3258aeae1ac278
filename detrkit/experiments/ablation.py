"""Train a config with a grid or a chain of changes, and compare each setting with the default."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.utils import get_object
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf

from align_detr.modeling.losses import CLASSIFICATION_LOSSES
from detrkit.config.catalogue import find_config
from detrkit.config.load import load_config

from . import seeds
from .experiment import Options, Report, run_experiment
from .runs import METRIC, METRICS, Run, Setting, make_run, relative

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


def run_ablation(
    config: str,
    baseline: str | None,
    options: Options,
    *,
    grid: Sequence[str] = (),
    full: bool = False,
    chain: Sequence[str] = (),
) -> bool:
    """Train and report an ablation in `options.output`.

    Args:
        config: name or path of the config to vary.
        baseline: name or path of a config that is trained as well, without the changes of the criterion; or None.
        grid: `name=value,value`; each value is tried alone. A short name is an option of the criterion.
        full: try all combinations of the grid.
        chain: `name=value` to change one after the other, keeping the changes before; instead of a grid.

    Returns:
        Whether all trainings succeeded.

    Raises:
        ValueError: a word of `grid` or `chain` cannot be read or has no key in the config, or a folder holds another
            training.
        FileNotFoundError: no such config.
    """
    if chain and (grid or full):
        raise ValueError("--chain is instead of --grid and --full")
    changes = parse_chain(chain) if chain else parse_grid(grid or GRID)
    path = find_config(config)
    cfg = load_config(str(path), options.overrides)
    load_config(str(path), [f"{key}={value}" for key, values in changes.items() for value in values])
    baseline_path = None if baseline is None else find_config(baseline)
    if chain:
        settings = make_links(cfg, path, changes, baseline_path)
    else:
        settings = make_settings(cfg, path, changes, full, baseline_path)
    runs = plan(options, settings)

    def summary_and_table() -> tuple[dict, str]:
        summary = summarize(runs)
        return summary, make_table(summary)

    def figure() -> Figure:
        if chain or full:
            return draw_lines(summarize(runs), "One after the other" if chain else "All combinations")
        return draw(summarize(runs), {key: default_of(cfg, key) for key in changes}, changes)

    iterations = runs[0].max_iter
    facts = {"device": str(cfg.train.device), "max_iter": iterations}
    title = f"{len(settings)} settings x {len(options.seeds)} seeds of {iterations} iterations"
    return run_experiment(runs, Report(summary_and_table, figure, "ablation.png", facts), options, title)


def parse_grid(
    words: Sequence[str], option: str = "--grid", form: str = "name=value,value,..."
) -> dict[str, list[str]]:
    """`["k=1,2"]` as `{"model.criterion.k": ["1", "2"]}`.

    Raises:
        ValueError: a word has another form, or names an option twice.
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
    """`["k=1", "tau=2"]` as `{"model.criterion.k": ["1"], "model.criterion.tau": ["2"]}`.

    Raises:
        ValueError: a word has another form or several values, or names an option twice.
    """
    chain = parse_grid(words, "--chain", "name=value")
    if several := [f"{key}={','.join(values)}" for key, values in chain.items() if len(values) > 1]:
        raise ValueError(f"--chain takes one value of each, not {several[0]}")
    return chain


def default_of(cfg: DictConfig, key: str) -> object:
    """The config's value at `key`, or the default of the constructor's argument that `key` names.

    Raises:
        ValueError: the config has neither.
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
    """Whether a value as written on the command line equals `value`; "2" equals 2.0."""
    try:
        return float(written) == float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return written.lower() == str(value).lower()


def make_settings(
    cfg: DictConfig, config: Path, grid: Mapping[str, Sequence[str]], full: bool, baseline: Path | None
) -> list[Setting]:
    """The baseline, the default, and the changes of the grid: one at a time, or with `full` all combinations."""
    changed = {
        key: [value for value in values if not is_same(value, default_of(cfg, key))] for key, values in grid.items()
    }
    if full:
        # None is the default, which is part of the product if the grid contains it.
        axes = [
            [None] * (len(changed[key]) < len(values)) + [(key, value) for value in changed[key]]
            for key, values in grid.items()
        ]
        combinations = [tuple(filter(None, combination)) for combination in itertools.product(*axes)]
    else:
        combinations = [((key, value),) for key, values in changed.items() for value in values]
    changing = [Setting(name_of(changes), config, changes) for changes in combinations if changes]
    return fixed_settings(config, baseline) + changing


def make_links(
    cfg: DictConfig, config: Path, chain: Mapping[str, Sequence[str]], baseline: Path | None
) -> list[Setting]:
    """The baseline, the default, the default with the first change, with the first two, and so on.

    Raises:
        ValueError: the config has one of the values already.
    """
    changes = [(key, value) for key, (value,) in chain.items()]
    if idle := [f"{key}={value}" for key, value in changes if is_same(value, default_of(cfg, key))]:
        raise ValueError(f"--chain: {idle[0]} is what the config has already")
    links = [tuple(changes[: count + 1]) for count in range(len(changes))]
    return fixed_settings(config, baseline) + [Setting(name_of(link), config, link) for link in links]


def fixed_settings(config: Path, baseline: Path | None) -> list[Setting]:
    """The baseline, if there is one, and the default."""
    return [*([Setting(PLAIN, baseline)] if baseline else []), Setting(DEFAULT, config)]


def name_of(changes: Sequence[tuple[str, str]]) -> str:
    """The name of a setting, such as "k=1 alpha=0"."""
    return " ".join(f"{key.removeprefix(CRITERION)}={value}" for key, value in changes)


def plan(options: Options, settings: Sequence[Setting]) -> list[Run]:
    """All runs, ordered by seed, so that every setting has a result early; finished runs have their results.

    Raises:
        ValueError: a folder holds a run of another config.
    """
    without_criterion = [word for word in options.overrides if not word.lstrip("+~").startswith(CRITERION)]
    overrides = {setting: without_criterion if setting.name == PLAIN else options.overrides for setting in settings}
    return [
        make_run(options.output, setting, seed, overrides[setting], options.max_iter)
        for seed, setting in itertools.product(options.seeds, settings)
    ]


def summarize(runs: Sequence[Run]) -> dict:
    """`seeds.summarize` of all settings against the default, with the config and changes of each."""
    settings = {run.setting.name: run.setting for run in runs}
    results = {name: [run.result for run in runs if run.setting.name == name and run.result] for name in settings}
    summary = seeds.summarize(results, DEFAULT, list(METRICS), METRIC)
    for row in summary["settings"]:
        setting = settings[row["name"]]
        row |= {"config": relative(setting.config), "changes": dict(setting.changes)}
    return summary


def make_table(summary: Mapping) -> str:
    """The table in Markdown, with a note that explains it."""
    rows = summary["settings"]
    return f"{seeds.table(rows, [title_of(row) for row in rows], METRICS, 'AP − default')}\n\n{note(summary)}\n"


def title_of(row: Mapping) -> str:
    """First cell of a row of the table, such as "k = 3, τ = 2"."""
    if row["name"] in (DEFAULT, PLAIN):
        return f"{row['name']} ({Path(row['config']).stem})"
    return ", ".join(f"{symbol(key)} = {value}" for key, value in row["changes"].items())


def symbol(key: str) -> str:
    """Short name of an option: a Greek letter, or the key without "model.criterion."."""
    name = key.removeprefix(CRITERION)
    return SYMBOLS.get(name, name)


def note(summary: Mapping) -> str:
    """The text below the table."""
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
