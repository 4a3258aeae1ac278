"""LazyConfig: loading, overriding, saving and instantiating."""

import re
import sys
from collections import Counter, OrderedDict
from fractions import Fraction

import pytest
import torch
from detectron2.config import LazyCall, LazyConfig, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError


@pytest.fixture
def tree(tmp_path):
    """Writes config files: `tree({"a/b.py": text})` returns their folder."""

    def write(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return tmp_path

    return write


def load(path):
    return LazyConfig.load(str(path))


def test_relative_imports_go_by_path_across_folders(tree):
    """A config imports from files in folders that are not packages."""
    root = tree(
        {
            "common/train.py": "train = dict(max_iter=10)\nscale = 3\n",
            "common/data/tiny.py": "from ..train import scale\ndata = dict(scale=scale)\n",
            "models/all.py": "net = dict(depth=50)\n_hidden = dict()\n",
            "exp/run.py": (
                "from ..common.train import train as schedule\n"
                "from ..common.data.tiny import data\n"
                "from ..models.all import net\n"
                "schedule.max_iter = 20\n"
            ),
        }
    )
    assert load(root / "exp/run.py") == {"schedule": {"max_iter": 20}, "net": {"depth": 50}, "data": {"scale": 3}}


def test_only_dictionaries_become_the_config(tree):
    """Helpers in a config file (modules, functions, classes, numbers, private names) stay out of the config."""
    text = """
import math
from omegaconf import ListConfig
from detectron2.config import LazyCall as L
number = 3
_private = dict(a=1)
def function(): ...
class Class: ...
plain = dict(number=number)
call = L(math.hypot)(x=1)
several = ListConfig([1, 2])
"""
    cfg = load(tree({"c.py": text}) / "c.py")
    assert set(cfg) == {"plain", "call", "several"}
    assert isinstance(cfg.plain, DictConfig)


def test_loads_share_nothing(tree):
    """Changing one loaded config changes neither another load of the file nor one that imports the same file."""
    files = {"base.py": "x = dict(y=dict(z=[1]))\n", "a.py": "from .base import x\n", "b.py": "from .base import x\n"}
    root = tree(files)
    first, second, other = load(root / "a.py"), load(root / "a.py"), load(root / "b.py")
    first.x.y.z.append(2)
    assert second.x.y.z == other.x.y.z == [1]
    assert load(root / "a.py").x.y.z == [1]


def test_loading_leaves_import_alone(tree):
    """Imports between configs add no modules to `sys.modules`, and do not change `import`."""
    import builtins

    before, names = builtins.__import__, set(sys.modules)
    root = tree({"base.py": "x = dict()\n", "a.py": "from .base import x\n"})
    load(root / "a.py")
    assert builtins.__import__ is before
    assert set(sys.modules) == names


def test_keys_select_values(tree):
    """`keys` gives one value, or a tuple of them, of any type."""
    path = tree({"a.py": "x = dict(y=1)\nn = 5\n"}) / "a.py"
    assert LazyConfig.load(str(path), "x").y == 1
    assert LazyConfig.load(str(path), ("n", "x")) == (5, {"y": 1})
    with pytest.raises(ValueError, match="a.py defines no 'z'"):
        LazyConfig.load(str(path), "z")


def test_load_rel_is_relative_to_the_caller(tree):
    """A module can load a config in its own folder."""
    root = tree({"conf/a.py": "x = dict(y=1)\n", "mod.py": "from detectron2.config import LazyConfig\n"})
    code = compile("cfg = LazyConfig.load_rel('conf/a.py')", str(root / "mod.py"), "exec")
    names = {"LazyConfig": LazyConfig}
    exec(code, names)
    assert names["cfg"].x.y == 1


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({}, FileNotFoundError, r"no such config file: .*a\.py"),
        ({"a.py": "x = dict(\n"}, ValueError, r"a\.py:1: not valid Python: '\(' was never closed"),
        ({"a.py": "\n\nfrom .b import x\n"}, FileNotFoundError, r"a\.py:3: .*not there: .*b\.py"),
        ({"a.py": "from .b import y\n", "b.py": "x = {}\n"}, ValueError, r"a\.py:1: no 'y' in .*b\.py"),
        ({"a.py": "\nfrom . import b\n"}, ValueError, r"a\.py:2: a relative import needs the name of a config file"),
        ({"a.py": "from .b import *\n", "b.py": "x = {}\n"}, ValueError, r"a\.py:1: import \* is not supported"),
        ({"a.py": "from .b import c\n", "b/c.py": ""}, FileNotFoundError, r"a\.py:1: .* a folder, not a config file"),
        (
            {"a.py": "from .b import x\n", "b.py": "\nfrom .a import x\n"},
            ValueError,
            r"b\.py:2: circular import of config files: .*a\.py -> .*b\.py -> .*a\.py",
        ),
    ],
)
def test_broken_config_files_are_located(tree, files, error, message):
    """Errors in a config file are one line with the file and the line number."""
    with pytest.raises(error, match=message) as caught:
        load(tree(files) / "a.py")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "x: [1\ny: 2\n", r"a\.yaml:2: not valid YAML"),
        ("a.yaml", "- 1\n", "holds a list"),
        ("a.json", "{}", r"must end in \.py or \.yaml"),
    ],
)
def test_files_that_are_no_config(tree, name, text, message):
    """Broken YAML and other formats are refused with a clear message."""
    with pytest.raises(ValueError, match=message):
        load(tree({name: text}) / name)


# --- overrides -------------------------------------------------------------------------------------------------------


def config():
    return OmegaConf.create(
        {
            "train": {"max_iter": 10, "out": "a", "sizes": [1, 2, 3]},
            "optimizer": {"lr": 0.1, "params": {"base_lr": "${..lr}"}},
            "alias": "${train}",
            "steps": [{"edge": 1}, {"edge": 2}],
        }
    )


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.max_iter=20", "train.max_iter", 20),
        ("train.max_iter=2e-3", "train.max_iter", 0.002),
        ("train.max_iter=null", "train.max_iter", None),
        ("train.out='a, b=c'", "train.out", "a, b=c"),
        ("train.out=", "train.out", ""),
        ("train.out=/data/x-1/model_final.pth", "train.out", "/data/x-1/model_final.pth"),
        ("train.out=detectron2://R-50.pkl", "train.out", "detectron2://R-50.pkl"),
        ("train.sizes=[4,[5,x]]", "train.sizes", [4, [5, "x"]]),
        ("train.sizes.1=7", "train.sizes", [1, 7, 3]),
        ("steps.1.edge=[8,9]", "steps", [{"edge": 1}, {"edge": [8, 9]}]),
        ("train={max_iter:5}", "train", {"max_iter": 5, "out": "a", "sizes": [1, 2, 3]}),
        ("+train.new.deep=true", "train.new", {"deep": True}),
        ("train.new=1", "train.new", 1),
        ("optimizer.lr=0.5", "optimizer.params.base_lr", 0.5),
        ("optimizer.params.base_lr=0.5", "optimizer", {"lr": 0.1, "params": {"base_lr": 0.5}}),
        ("train.max_iter=${optimizer.lr}", "train.max_iter", 0.1),
        ("optimizer.params.base_lr=${train.max_iter}", "optimizer.params.base_lr", 10),
        ("alias=3", "alias", 3),
    ],
)
def test_override(override, key, value):
    """The override grammar: types, quotes, lists, positions, merging, adding, interpolations."""
    cfg = config()
    assert LazyConfig.apply_overrides(cfg, [override]) is cfg
    assert OmegaConf.select(cfg, key) == value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.max_iter", "not of the form key=value"),
        ("train.max_iter=1,2", "is a sweep"),
        ("train.max_iter.x=1", "train.max_iter is 10, which has no keys"),
        ("steps.2.edge=1", "2 is not a position in a list of 2"),
        ("steps.first.edge=1", "first is not a position"),
        ("alias.max_iter=1", re.escape("alias is an interpolation of ${train}; override that instead")),
    ],
)
def test_override_that_cannot_be_applied(override, message):
    """A bad override gives an error of one line and does not change the config."""
    cfg = config()
    with pytest.raises(ValueError, match=message) as caught:
        LazyConfig.apply_overrides(cfg, [override])
    assert "\n" not in str(caught.value)
    assert cfg == config()


def test_deletion_is_refused():
    """Deletions are an error, as detectron2 does not support them."""
    with pytest.raises(NotImplementedError, match="~train.out.*set it to null"):
        LazyConfig.apply_overrides(config(), ["~train.out"])


# --- instantiate -----------------------------------------------------------------------------------------------------


def test_instantiate_is_recursive():
    """Calls in arguments and lists are made, with targets by name or object. As in detectron2, calls in a mapping
    without a target are not made, and lists of a config stay ListConfigs."""
    cfg = LazyCall(dict)(
        first=LazyCall("fractions.Fraction")(numerator=1, denominator=2),
        listed=[LazyCall(Fraction)(numerator=3), 4],
        nested={"deep": {"call": LazyCall(OrderedDict)(x=1)}},
    )
    built = instantiate(cfg)
    assert built == {"first": Fraction(1, 2), "listed": [Fraction(3), 4], "nested": cfg.nested}
    assert built["nested"].deep.call._target_ == "collections.OrderedDict"
    assert isinstance(built["listed"], ListConfig)
    assert type(instantiate([1])) is list


def test_instantiate_leaves_values_alone():
    """Objects and callables in a config are passed to the constructor without a copy or a call."""
    module = torch.nn.Linear(1, 1)
    built = instantiate(LazyCall(dict)(module=module, norm=torch.nn.LayerNorm, function=len, none=None))
    assert built == {"module": module, "norm": torch.nn.LayerNorm, "function": len, "none": None}
    assert instantiate(module) is module
    assert instantiate(5) == 5


def test_instantiate_resolves_interpolations():
    """Relative and absolute interpolations reach the constructors as values, through two levels of calls."""
    cfg = DictConfig({"lr": 0.1}, flags={"allow_objects": True})
    cfg.opt = LazyCall(dict)(lr="${lr}", groups=[LazyCall(dict)(lr="${...lr}")])
    assert instantiate(cfg.opt) == {"lr": 0.1, "groups": [{"lr": 0.1}]}
    cfg.lr = 0.2
    assert instantiate(cfg.opt)["groups"][0]["lr"] == 0.2


def test_instantiate_gives_dataclasses_back():
    """A dataclass instance in a config is passed as an equal instance, although OmegaConf converts it to a mapping."""
    from detectron2.layers import ShapeSpec

    built = instantiate(LazyCall(dict)(shapes={"res3": ShapeSpec(channels=8, stride=16)}))
    assert built["shapes"]["res3"] == ShapeSpec(channels=8, stride=16)
    assert instantiate(LazyCall(ShapeSpec)(channels=3)) == ShapeSpec(channels=3)


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"_target_": "no_such_package.Thing"}, "'no_such_package.Thing' of the config cannot be imported"),
        ({"_target_": "fractions.NoSuchThing"}, "'fractions.NoSuchThing' of the config cannot be imported"),
        ({"_target_": "math.pi"}, "is a float, not a callable"),
        ({"_target_": "fractions.Fraction", "nominator": 1}, "do not fit Fraction: .*'nominator'"),
    ],
)
def test_instantiate_what_cannot_be_built(cfg, message):
    """A target that does not import or does not take an argument is named in one line."""
    with pytest.raises(ValueError, match=message) as caught:
        instantiate(OmegaConf.create(cfg))
    assert "\n" not in str(caught.value)


def test_errors_of_constructors_pass_through():
    """A TypeError from inside a constructor is not mistaken for wrong arguments of the config."""
    with pytest.raises(TypeError, match="both arguments should be Rational"):
        instantiate(LazyCall(Fraction)(numerator="1", denominator=2))


def test_lazy_call_wants_something_to_call():
    """A wrong target raises an error in LazyCall, before `instantiate`."""
    with pytest.raises(TypeError, match="not a int"):
        LazyCall(3)


# --- YAML ------------------------------------------------------------------------------------------------------------


def saved_and_loaded(cfg, tmp_path):
    path = str(tmp_path / "saved.yaml")
    LazyConfig.save(cfg, path)
    return LazyConfig.load(path)


def test_yaml_keeps_what_configs_hold(tmp_path):
    """Targets, lists, None, interpolations, functions, classes and lambdas survive saving, and build the same."""
    cfg = DictConfig(
        {
            "lr": 1e-4,
            "model": LazyCall(torch.nn.Linear)(in_features=2, out_features="${.in_features}", bias=False),
            "counter": LazyCall(Counter.fromkeys)(iterable=[1, 2]),
            "optimizer": {
                "lr": "${..lr}",
                "init": torch.nn.init.xavier_uniform_,
                "norm": torch.nn.LayerNorm,
                "factor": lambda name: 0.1 if "backbone" in name else 1,
            },
            "none": None,
            "text": "umlaut ü: yes",
        },
        flags={"allow_objects": True},
    )
    again = saved_and_loaded(cfg, tmp_path)

    assert OmegaConf.is_interpolation(again.optimizer, "lr")
    again.lr = 1.0
    assert again.optimizer.lr == 1.0
    assert again.optimizer.init is torch.nn.init.xavier_uniform_
    assert again.optimizer.norm is torch.nn.LayerNorm
    assert [again.optimizer.factor(name) for name in ("backbone.stem", "neck")] == [0.1, 1]
    assert instantiate(again.model).weight.shape == (2, 2)
    assert again.model._target_ == "torch.nn.modules.linear.Linear"
    assert (again.none, again.text) == (None, "umlaut ü: yes")
    once_more = saved_and_loaded(again, tmp_path)
    assert once_more.model == again.model


def test_yaml_tells_two_lambdas_of_one_line_apart(tmp_path):
    """The saved source belongs to the same lambda, also with several lambdas in a line."""
    cfg = DictConfig({"f": lambda x: x + 1, "g": lambda x: x + 2}, flags={"allow_objects": True})
    again = saved_and_loaded(cfg, tmp_path)
    assert (again.f(0), again.g(0)) == (1, 2)


def test_yaml_says_what_it_cannot_hold(tmp_path, caplog):
    """A config with a closure or a local target can be saved; a warning names them."""
    step = 3

    def local():
        return step

    cfg = DictConfig({"a": {"closure": lambda x: x + step}, "b": LazyCall(local)()}, flags={"allow_objects": True})
    again = saved_and_loaded(cfg, tmp_path)
    assert "<lambda>" in again.a.closure
    assert [name in caplog.text for name in ("a.closure", "b._target_")] == [True, True]


def test_saving_resolves_every_value(tmp_path):
    """Saving raises an error for unresolvable interpolations, as in detectron2. Such interpolations come from helper
    nodes at the top level of a config file."""
    cfg = DictConfig({"model": {"classes": 3}, "criterion": {"classes": ["${..num_classes}"]}})
    with pytest.raises(InterpolationKeyError, match="num_classes"):
        LazyConfig.save(cfg, str(tmp_path / "saved.yaml"))
    assert not (tmp_path / "saved.yaml").exists()


def test_to_py_reads_like_python():
    """The readable form shows calls, attributes for nested keys, and lists of any length."""
    cfg = DictConfig({"train": {"max_iter": 3, "7": "x"}}, flags={"allow_objects": True})
    cfg.model = LazyCall(Fraction)(numerator=LazyCall("pkg.f")(x="${..y}"), sizes=[1, 2])
    assert LazyConfig.to_py(cfg) == (
        "cfg.train.max_iter = 3\n"
        "cfg.train['7'] = 'x'\n"
        "cfg.model = fractions.Fraction(numerator=pkg.f(x='${..y}'), sizes=[1, 2])\n"
    )
    assert LazyConfig.to_py(cfg, prefix="").startswith("train.max_iter = 3\n")
