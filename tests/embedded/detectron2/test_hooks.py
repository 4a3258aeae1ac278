"""What hooks do at which iteration, in runs that go through, that resume and that break."""

import math

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import SimpleTrainer, hooks
from detectron2.engine.train_loop import HookBase, TrainerBase
from detectron2.utils.events import EventWriter
from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler
from torch import nn


class Loop(TrainerBase):
    """Does nothing for an iteration, or breaks in one."""

    def __init__(self, break_at=None):
        super().__init__()
        self.break_at = break_at

    def run_step(self):
        if self.iter == self.break_at:
            raise RuntimeError("broken")


class Record(HookBase):
    """Calls a function after each step."""

    def __init__(self, function):
        self.function = function

    def after_step(self):
        self.function(self.trainer)


def run(trainer, *registered, start=0, end=10):
    trainer.register_hooks(list(registered))
    trainer.train(start, end)


def sgd(lr=1.0):
    """An optimizer with two groups, the second a tenth as fast."""
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in (lr, lr / 10)])


def test_learning_rates_follow_the_schedule_from_any_start():
    """Each iteration steps with lr * schedule(iter / max_iter), in a fresh run and in a resumed one."""
    schedule = MultiStepParamScheduler([1, 0.1], milestones=[6, 10])
    optimizer, used, logged = sgd(), [], []

    class Step(Loop):
        def run_step(self):
            used.append([group["lr"] for group in optimizer.param_groups])

    log = Record(lambda trainer: logged.append(trainer.storage.latest()["lr"][0]))
    run(Step(), hooks.LRScheduler(optimizer, schedule), log)
    assert used == [[pytest.approx(lr), pytest.approx(lr / 10)] for lr in [1.0] * 6 + [0.1] * 4]
    assert logged == [lr for lr, _ in used], "the rate that is logged is the one that was used"

    whole = list(used)
    saved = optimizer.state_dict()
    for start in (3, 8):
        optimizer = sgd(lr=5.0)
        optimizer.load_state_dict(saved)
        used.clear()
        run(Step(), hooks.LRScheduler(optimizer, schedule), start=start)
        assert used == [[pytest.approx(lr) for lr in both] for both in whole[start:]]


def test_logged_rate_is_that_of_most_parameters():
    """The curve shows the rate of the transformer, not of the few tensors with one of their own."""
    weights = [nn.Parameter(torch.zeros(1)) for _ in range(6)]
    groups = [{"params": weights[i : i + 2], "lr": lr} for i, lr in ((0, 1.0), (2, 0.5), (4, 0.5))]
    assert hooks.LRScheduler.get_best_param_group_id(torch.optim.SGD(groups)) == 1


def test_torch_schedulers_step_and_resume():
    """A scheduler of torch's own keeps its place across a resume by its state."""
    optimizer = sgd()
    hook = hooks.LRScheduler(optimizer, torch.optim.lr_scheduler.StepLR(optimizer, step_size=4, gamma=0.1))
    first = Loop()
    optimizer.step()  # torch warns of schedulers of optimizers that never step
    run(first, hook, end=5)
    state, saved = first.state_dict(), optimizer.state_dict()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)

    resumed, optimizer = Loop(), sgd()
    optimizer.load_state_dict(saved)
    resumed.register_hooks([hooks.LRScheduler(optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 4, 0.1))])
    resumed.load_state_dict(state)
    optimizer.step()
    resumed.train(5, 9)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


def names(folder):
    return sorted(path.stem for path in folder.glob("*.pth"))


def test_checkpoints_come_periodically_and_old_ones_go(tmp_path):
    """`max_to_keep` holds across a resume too; the final model is never among those that go."""
    checkpointer = DetectionCheckpointer(nn.Linear(1, 1), str(tmp_path))
    with pytest.raises(RuntimeError):
        run(Loop(break_at=7), hooks.PeriodicCheckpointer(checkpointer, 2, max_to_keep=2))
    assert names(tmp_path) == ["model_0000003", "model_0000005"]
    run(Loop(), hooks.PeriodicCheckpointer(checkpointer, 2, max_to_keep=2), start=6)
    assert names(tmp_path) == ["model_0000007", "model_0000009", "model_final"]
    assert torch.load(tmp_path / "model_final.pth", weights_only=True)["iteration"] == 9
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


@pytest.mark.parametrize(
    "period, end, expected", [(3, 10, [2, 5, 8, 10]), (5, 10, [4, 10]), (0, 4, [4]), (20, 4, [4])]
)
def test_evaluation_is_periodic_and_once_at_the_end(period, end, expected):
    """Never twice for one model: the last iteration's evaluation is the one after the training."""
    at = []
    trainer = Loop()
    run(trainer, hooks.EvalHook(period, lambda: at.append(trainer.iter) or {"bbox": {"AP": 1, "s": {"x": 2}}}), end=end)
    assert at == expected
    assert {name: value for name, (value, _) in trainer.storage.latest().items()} == {"bbox/AP": 1, "bbox/s/x": 2}


@pytest.mark.parametrize("break_at", [0, 9])
def test_a_broken_training_is_not_evaluated_but_its_metrics_are_written(break_at):
    """An error ends the run at once, instead of after an evaluation of what is left of the model."""
    evaluated, calls = [], []

    class Writer(EventWriter):
        def write(self):
            calls.append("write")

        def close(self):
            calls.append("close")

    with pytest.raises(RuntimeError, match="broken"):
        run(Loop(break_at), hooks.EvalHook(0, lambda: evaluated.append(1)), hooks.PeriodicWriter([Writer()], 100))
    assert not evaluated and calls == ["write", "close"]


def test_evaluation_must_return_numbers():
    with pytest.raises(ValueError, match="bbox/AP='high'"):
        run(Loop(), hooks.EvalHook(0, lambda: {"bbox": {"AP": "high"}}))


@pytest.mark.parametrize("mode, best_at", [("max", 5), ("min", 3)])
def test_best_checkpoint_is_that_of_the_best_evaluation(tmp_path, mode, best_at):
    """Among evaluations with a nan and a tie in them."""
    values = iter([math.nan, 0.2, 0.9, 0.9, 0.5])
    checkpointer = DetectionCheckpointer(nn.Linear(1, 1), str(tmp_path))
    best = hooks.BestCheckpointer(2, checkpointer, "AP", mode)
    run(Loop(), hooks.EvalHook(2, lambda: {"AP": next(values)}), best, end=10)
    assert torch.load(tmp_path / "model_best.pth", weights_only=True)["iteration"] == best_at == best.best_iter


def test_an_unknown_mode_of_the_best_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="best"):
        hooks.BestCheckpointer(1, DetectionCheckpointer(nn.Linear(1, 1), str(tmp_path)), "AP", mode="best")


def test_iteration_times_leave_out_warmup_and_other_hooks():
    """Seconds an iteration are those of the step: evaluation does not make a model look slow."""
    trainer = Loop()
    run(trainer, hooks.IterationTimer(warmup_iter=3), Record(lambda trainer: __import__("time").sleep(0.02)), end=6)
    times = trainer.storage.history("time").values()
    assert [iteration for _, iteration in times] == [3, 4, 5]
    assert max(value for value, _ in times) < 0.015


def test_hook_state_survives_other_hooks(caplog):
    """State of a hook that is gone is passed over, that of the others still arrives."""
    trainer = Loop()

    class Kept(HookBase):
        def state_dict(self):
            return {"x": self.x}

        def load_state_dict(self, state):
            self.x = state["x"]

    trainer.register_hooks([None, Kept()])
    name = Kept.__qualname__
    trainer.load_state_dict({"iteration": 4, "hooks": {"Gone": {"x": 1}, name: {"x": 0.5}}})
    assert trainer.iter == 4
    assert trainer.state_dict() == {"iteration": 4, "hooks": {name: {"x": 0.5}}}


def test_schedule_of_a_simple_trainer_is_over_its_optimizer():
    """LRScheduler without an optimizer takes the trainer's."""
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0)

    class Loss(nn.Module):
        def forward(self, batch):
            return {"loss": model(batch).sum()}

    trainer = SimpleTrainer(Loss(), iter([torch.ones(1, 1)] * 4), optimizer)
    run(trainer, hooks.LRScheduler(scheduler=CosineParamScheduler(1.0, 0.0)), end=4)
    assert [value for value, _ in trainer.storage.history("lr").values()] == pytest.approx(
        [2 * 0.5 * (1 + math.cos(math.pi * i / 4)) for i in range(4)]
    )
