"""Checkpoints: saving and loading, atomic writing, and errors for files that do not fit."""

import logging
import pickle

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn


def net(classes=3, width=4, depth=4):
    return nn.ModuleDict(
        {
            "backbone": nn.Sequential(*[nn.Linear(width, width) for _ in range(depth)]),
            "head": nn.Linear(width, classes),
        }
    )


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.fixture
def warnings(caplog):
    with caplog.at_level(logging.WARNING):
        logging.getLogger("fvcore").propagate = True
        yield caplog


def test_everything_comes_back(tmp_path):
    """Resuming loads model, optimizer and iteration from `last_checkpoint`; without resume only the model is loaded."""
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5)
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    DetectionCheckpointer(model, str(tmp_path), optimizer=optimizer).save("model_0000007", iteration=7)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000007.pth"
    assert sorted(torch.load(tmp_path / "model_0000007.pth", weights_only=True)) == ["iteration", "model", "optimizer"]

    for resume in (True, False):
        other = net()
        fresh = torch.optim.AdamW(other.parameters(), lr=0.1)
        checkpointer = DetectionCheckpointer(other, str(tmp_path), optimizer=fresh)
        extra = checkpointer.resume_or_load(str(tmp_path / "model_0000007.pth"), resume=resume)
        assert same(model, other) and extra["iteration"] == 7
        assert (fresh.param_groups[0]["lr"], len(fresh.state)) == ((0.5, len(optimizer.state)) if resume else (0.1, 0))


def test_only_the_main_process_writes(tmp_path):
    DetectionCheckpointer(net(), str(tmp_path), save_to_disk=False).save("model")
    assert not list(tmp_path.iterdir())


def test_a_crash_while_saving_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    """A full disk or a killed job does not damage earlier checkpoints."""
    model = net()
    checkpointer = DetectionCheckpointer(model, str(tmp_path))
    checkpointer.save("model_best", iteration=1)
    before = (tmp_path / "model_best.pth").read_bytes()

    def full_disk(data, file):
        file.write(b"half of")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    for name in ("model_best", "model_0000002"):
        with pytest.raises(OSError, match="No space"):
            checkpointer.save(name, iteration=2)
    assert (tmp_path / "model_best.pth").read_bytes() == before
    assert (tmp_path / "last_checkpoint").read_text() == "model_best.pth"
    assert {path.name for path in tmp_path.iterdir()} == {"model_best.pth", "last_checkpoint"}


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match="/nowhere/model.pth"):
        DetectionCheckpointer(net()).load("/nowhere/model.pth")


def test_no_path_loads_nothing():
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert DetectionCheckpointer(model).load("") == {}
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


class Evil:
    def __reduce__(self):
        return print, ("code ran",)


@pytest.mark.parametrize(
    "content",
    [b"not a checkpoint", b"", pickle.dumps({"model": Evil()}, protocol=2), {"weights": 3}, {"model": Evil()}],
    ids=["text", "empty", "pickle", "other data", "code"],
)
def test_what_is_no_checkpoint_is_refused(tmp_path, content, capsys):
    """Errors are one line with the file's name; loading runs no code."""
    path = tmp_path / "model.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ValueError, match="model.pth") as error:
        DetectionCheckpointer(net()).load(str(path))
    assert "\n" not in str(error.value) and "code ran" not in capsys.readouterr().out


def test_a_bare_state_dict_and_one_of_a_wrapped_model_load(tmp_path):
    """Files without the outer dict, or with DistributedDataParallel's prefix, can be loaded."""
    model = net()
    state = model.state_dict()
    wrapped = {"model": {f"module.{key}": value for key, value in state.items()}}
    for name, content in {"bare": state, "wrapped": wrapped}.items():
        torch.save(content, tmp_path / f"{name}.pth")
        other = net()
        DetectionCheckpointer(other).load(str(tmp_path / f"{name}.pth"))
        assert same(model, other)


@pytest.mark.parametrize(
    "other",
    [nn.Sequential(*[nn.Linear(4, 4) for _ in range(9)]), net(width=8)],
    ids=["other names", "other shapes"],
)
def test_another_architecture_is_an_error_with_examples(tmp_path, other):
    """Weights of another architecture are an error."""
    torch.save({"model": other.state_dict()}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="another architecture.*(backbone.0.weight|0.bias)") as error:
        DetectionCheckpointer(net()).load(str(tmp_path / "model.pth"))
    assert "\n" not in str(error.value)


def test_part_of_a_model_loads_with_a_warning(tmp_path, warnings):
    """A backbone alone, and a detector with other classes, can be loaded for fine-tuning."""
    pretrained = net(classes=80)
    torch.save({"model": pretrained.state_dict()}, tmp_path / "classes.pth")
    backbone = {key: value for key, value in pretrained.state_dict().items() if key.startswith("backbone")}
    torch.save({"model": backbone}, tmp_path / "backbone.pth")
    for name in ("classes", "backbone"):
        model = net()
        warnings.clear()
        DetectionCheckpointer(model).load(str(tmp_path / f"{name}.pth"))
        assert same(model["backbone"], pretrained["backbone"])
        assert "head" in warnings.text
