"""The training loop against one written out by hand, in float32 and under autocast; what scripts start with."""

import logging
from argparse import Namespace

import pytest
import torch
from detectron2.engine import SimpleTrainer, default_argument_parser, default_setup, default_writers
from detectron2.engine.train_loop import HookBase
from detectron2.utils.env import seed_all_rng
from omegaconf import OmegaConf
from torch import nn


class Model(nn.Module):
    def __init__(self, scale=1.0):
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.scale = scale

    def forward(self, batch):
        self.seen = self.layer(batch)
        return {"loss_a": self.seen.float().square().mean() * self.scale, "loss_b": self.seen.float().abs().mean()}


def parts(seed=0, **kwargs):
    torch.manual_seed(seed)
    model = Model(**kwargs)
    batches = torch.randn(5, 4, 3)
    return model, batches, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("zero_first", [False, True])
def test_training_equals_a_loop_written_by_hand(zero_first):
    """Losses are summed, gradients start from zero, and each iteration's losses are recorded."""
    model, batches, optimizer = parts()
    history = []
    for batch in batches:
        losses = model(batch)
        history.append({name: loss.item() for name, loss in losses.items()})
        optimizer.zero_grad()
        (losses["loss_a"] + losses["loss_b"]).backward()
        optimizer.step()
    expected = weights(model)

    model, batches, optimizer = parts()
    trainer = SimpleTrainer(model, batches, optimizer, zero_grad_before_forward=zero_first)
    trainer.train(0, 5)
    torch.testing.assert_close(weights(model), expected)
    recorded = {name: [v for v, _ in trainer.storage.history(name).values()] for name in trainer.storage.histories()}
    assert recorded["loss_a"] == pytest.approx([losses["loss_a"] for losses in history])
    assert recorded["total_loss"] == pytest.approx([sum(losses.values()) for losses in history])


def test_hooks_run_in_order_around_each_step():
    """A hook may rely on where it is called: gradients are there after the backward pass, and not yet applied."""
    model, batches, optimizer = parts()
    calls = []

    class Spy(HookBase):
        def before_train(self):
            calls.append("before_train")

        def before_step(self):
            self.start = weights(model)["layer.bias"].item()

        def after_backward(self):
            unchanged = weights(model)["layer.bias"].item() == self.start
            calls.append((self.trainer.iter, model.layer.bias.grad is not None, unchanged))

        def after_step(self):
            calls.append(weights(model)["layer.bias"].item() != self.start)

        def after_train(self):
            calls.append((self.trainer.iter, self.trainer.storage.iter))

    trainer = SimpleTrainer(model, batches, optimizer)
    trainer.register_hooks([Spy()])
    trainer.train(1, 3)
    assert calls == ["before_train", (1, True, True), True, (2, True, True), True, (3, 3)]


def test_a_loss_that_is_not_finite_stops_before_it_reaches_the_weights():
    """One line names the iteration and the losses, and what is in memory is still a model."""
    model, batches, optimizer = parts()
    batches[2] = float("nan")
    trainer = SimpleTrainer(model, batches, optimizer)
    with pytest.raises(FloatingPointError, match="iteration 2: loss_a=nan, loss_b=nan") as error:
        trainer.train(0, 5)
    assert "\n" not in str(error.value)
    assert all(tensor.isfinite().all() for tensor in weights(model).values())
    assert trainer.iter == 2


def test_metrics_may_be_gathered_now_and_then():
    model, batches, optimizer = parts()
    trainer = SimpleTrainer(model, batches, optimizer, gather_metric_period=2)
    trainer.train(0, 5)
    assert [iteration for _, iteration in trainer.storage.history("total_loss").values()] == [1, 3]


def test_a_model_may_return_one_loss():
    """A single tensor is the total."""

    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, batch):
            return (self.weight * batch).sum()

    model = One()
    trainer = SimpleTrainer(model, [torch.ones(1)], torch.optim.SGD(model.parameters(), lr=1.0))
    trainer.train(0, 1)
    assert trainer.storage.latest()["total_loss"][0] == 1.0


def test_setup_leaves_log_and_config_and_seeds(tmp_path, monkeypatch):
    """A run can be told from its folder, and repeated from its seed."""
    for name in ("detectron2", "fvcore"):
        monkeypatch.setattr(logging.getLogger(name), "handlers", [])
    cfg = OmegaConf.create({"train": {"output_dir": str(tmp_path / "run"), "seed": 3}})
    default_setup(cfg, Namespace(eval_only=False))
    first = torch.rand(3)
    default_setup(cfg, Namespace(eval_only=False))
    assert torch.equal(first, torch.rand(3))
    assert OmegaConf.load(tmp_path / "run" / "config.yaml") == cfg
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count(f"PyTorch {torch.__version__}") == 2, "one line a run: the second set-up adds no second handler"


def test_random_seeds_differ_unless_given():
    seed_all_rng()
    first = torch.rand(3)
    seed_all_rng()
    assert not torch.equal(first, torch.rand(3))


def test_command_line_has_detectron2s_options():
    """Scripts and habits carry over, and overrides follow the options."""
    args = default_argument_parser().parse_args(["--config-file", "x.py", "--resume", "--num-gpus", "2", "a=1", "b=-2"])
    assert (args.config_file, args.resume, args.eval_only, args.num_gpus) == ("x.py", True, False, 2)
    assert (args.num_machines, args.machine_rank, args.dist_url, args.opts) == (1, 0, "auto", ["a=1", "b=-2"])


def test_default_writers_write_where_they_are_told(tmp_path):
    writers = default_writers(str(tmp_path / "new"), max_iter=3)
    assert (tmp_path / "new" / "metrics.json").exists() and len(writers) == 3
