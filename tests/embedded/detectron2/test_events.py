"""Metrics: what is stored, and what the console, `metrics.json` and TensorBoard show of it."""

import json

import numpy as np
import pytest
import torch
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventStorage,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_storage_is_current_only_inside_its_block():
    """A model that logs outside a training is told so; storages nest."""
    with pytest.raises(LookupError, match="EventStorage"):
        get_event_storage()
    with EventStorage() as outer:
        with EventStorage() as inner:
            assert get_event_storage() is inner
        assert get_event_storage() is outer


def test_smoothing_is_the_median_over_a_window_of_iterations():
    """A loss is smoothed, a learning rate is not, and samples older than the window do not count."""
    storage = EventStorage()
    for storage.iter in range(0, 100, 10):
        storage.put_scalars(loss=float(storage.iter))
        storage.put_scalar("lr", storage.iter, smoothing_hint=False)
    assert storage.count_samples("loss", window_size=30) == 3
    assert storage.latest_with_smoothing_hint(30) == {"loss": (80.0, 90), "lr": (90.0, 90)}
    assert storage.latest()["loss"] == (90.0, 90)
    assert storage.history("loss").global_avg() == pytest.approx(45)
    with pytest.raises(ValueError, match="smoothing_hint"):
        storage.put_scalar("lr", 1.0)
    with pytest.raises(KeyError, match="nothing"):
        storage.history("nothing")


def test_json_writer_writes_each_iteration_once_and_goes_on_after_a_crash(tmp_path):
    """One object a line, whatever happened before: a torn last line does not swallow the next one."""
    path = tmp_path / "metrics.json"
    with EventStorage() as storage:
        writer = JSONWriter(path)
        storage.put_scalar("loss", 2.0)
        writer.write()
        writer.write()
        storage.step()
        storage.put_scalars(loss=4.0, bad=float("nan"))
        storage.put_scalar("AP", 0.5, smoothing_hint=False, cur_iter=5)
        writer.write()
        writer.close()
    assert read(path) == [
        {"iteration": 0, "loss": 2.0},
        {"iteration": 1, "loss": 3.0, "bad": None},
        {"iteration": 5, "AP": 0.5},
    ]

    path.write_text(path.read_text() + '{"iteration": 6, "lo')
    with EventStorage(7) as storage:
        writer = JSONWriter(path)
        storage.put_scalar("loss", 1.0)
        writer.write()
        writer.close()
    assert json.loads(path.read_text().splitlines()[-1]) == {"iteration": 7, "loss": 1.0}
    assert len(path.read_text().splitlines()) == 5


def test_console_line_has_the_losses_that_matter(monkeypatch):
    """Of forty losses of a DETR, a line shows the total and the last layer's, the rate, and the time left."""
    lines = []
    with EventStorage(9) as storage:
        printer = CommonMetricPrinter(max_iter=30)
        monkeypatch.setattr(printer.logger, "info", lines.append)
        names = ["loss_class", "loss_bbox", "loss_class_0", "loss_bbox_enc", "loss_class_dn_3", "total_loss"]
        storage.put_scalars(**dict.fromkeys(names, 1.5), time=3.0, data_time=0.25)
        storage.put_scalar("lr", 1e-4, smoothing_hint=False)
        printer.write()
        printer.write()  # no news
        storage.iter = 30  # after the training
        storage.put_scalar("bbox/AP", 1.0, smoothing_hint=False)
        printer.write()
    (line,) = lines
    assert line.startswith("iter: 10/30  eta: 0:01:00  total_loss: 1.5  loss_bbox: 1.5  loss_class: 1.5  lr: 0.0001")
    assert "time: 3.0000s  data: 0.2500s" in line
    assert "_0" not in line and "_enc" not in line and "_dn" not in line
    assert "max_" in line, "memory, of the GPU or of the process"


def test_tensorboard_gets_scalars_and_images(tmp_path):
    """What a model draws during training can be looked at, each image once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = TensorboardXWriter(str(tmp_path))
    assert not list(tmp_path.iterdir()), "an evaluation leaves no empty event file"
    with EventStorage(3) as storage:
        storage.put_scalar("loss", 0.5)
        storage.put_image("boxes", torch.zeros(3, 8, 8, dtype=torch.uint8))
        storage.put_image("also", np.zeros((3, 8, 8), dtype=np.float32))
        writer.write()
        writer.write()
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(3, 0.5)]
    assert [e.step for e in events.Images("boxes")] == [3] and events.Images("also")
