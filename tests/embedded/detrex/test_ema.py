"""The moving average of the weights: compared with a loop over numbers, and used in a training."""

import pytest
import torch
from detectron2.engine import SimpleTrainer
from detrex.modeling import ema
from omegaconf import OmegaConf
from torch import nn


def config(enabled=True, decay=0.9):
    return OmegaConf.create({"train": {"model_ema": {"enabled": enabled, "decay": decay, "device": ""}}})


class Model(nn.Module):
    """A model with a parameter, a shared parameter, a running mean and a counter."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.again = self.layer
        self.norm = nn.BatchNorm1d(2)

    def forward(self, batch):
        return {"loss": self.norm(self.again(self.layer(batch))).square().sum() + self.layer.bias.sum()}


def snapshot(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def trainer_of(model, cfg):
    batches = [torch.randn(4, 2, generator=torch.Generator().manual_seed(i)) for i in range(6)]
    trainer = SimpleTrainer(model, batches, torch.optim.SGD(model.parameters(), lr=0.1))
    trainer.register_hooks([ema.EMAHook(cfg, model)])
    return trainer


def test_average_is_that_of_a_loop_written_by_hand():
    """The average starts from the initial parameters and running statistics; counters are copied."""
    torch.manual_seed(0)
    model, cfg = Model(), config()
    ema.may_build_model_ema(cfg, model)
    expected = snapshot(model)
    trainer = trainer_of(model, cfg)

    class ByHand(ema.HookBase):
        def after_step(self):
            for name, tensor in snapshot(model).items():
                if tensor.is_floating_point():
                    expected[name] = 0.9 * expected[name] + 0.1 * tensor
                else:
                    expected[name] = tensor

    trainer.register_hooks([ByHand()])
    trainer.train(0, 6)
    average = ema.get_model_ema_state(model).state_dict()
    assert set(average) < set(expected) and "again.weight" not in average, "a shared tensor is averaged once"
    torch.testing.assert_close(average, {name: expected[name] for name in average})
    assert average["norm.num_batches_tracked"] == 6
    assert not torch.equal(average["layer.weight"], model.layer.weight)


def test_weights_are_lent_and_given_back_even_after_an_error():
    """An evaluation with the average does not change the training, even if it fails."""
    model, cfg = Model(), config()
    ema.may_build_model_ema(cfg, model)
    state = ema.get_model_ema_state(model)
    state.save_from(model)
    for tensor in state.state.values():
        tensor.fill_(7)
    before = snapshot(model)
    with pytest.raises(ZeroDivisionError), ema.apply_model_ema_and_restore(model):
        assert all((tensor == 7).all() for tensor in model.state_dict().values())
        raise ZeroDivisionError
    torch.testing.assert_close(snapshot(model), before)
    assert all((tensor == 7).all() for tensor in state.state.values()), "the average is not touched"

    kept = ema.apply_model_ema(model, save_current=True)
    assert model.layer.weight[0, 0] == 7 and torch.equal(kept.state["layer.weight"], before["layer.weight"])
    assert ema.apply_model_ema(model) is None


def test_a_resumed_average_goes_on():
    """Six iterations equal three, a saved and loaded state, and three more."""
    results = []
    for stops in ([6], [3, 6]):
        torch.manual_seed(0)
        model, cfg, start, saved = Model(), config(), 0, None
        for stop in stops:
            ema.may_build_model_ema(cfg, model)
            (state,) = ema.may_get_ema_checkpointer(cfg, model).values()
            if saved is not None:
                state.load_state_dict(saved)
            trainer = trainer_of(model, cfg)
            trainer.data_loader = trainer.data_loader[start:]
            trainer.train(start, stop)
            saved, start = {name: tensor.clone() for name, tensor in state.state_dict().items()}, stop
        results.append(saved)
    torch.testing.assert_close(*results)


def test_weights_of_another_model_are_refused():
    state = ema.EMAState.FromModel(nn.Linear(2, 2))
    assert state.has_inited() and state.device.type == "cpu"
    with pytest.raises(ValueError, match="weight"):
        state.load_state_dict(ema.EMAState.FromModel(nn.Linear(3, 2)).state_dict())
    state.clear()
    assert not state.has_inited() and state.device is None


def test_switched_off_it_is_not_there():
    """Without EMA: no copy of the model, nothing in checkpoints, and a clear error for code that uses it."""
    model, cfg = Model(), config(enabled=False)
    ema.may_build_model_ema(cfg, model)
    assert ema.may_get_ema_checkpointer(cfg, model) == {}
    with pytest.raises(ValueError, match="may_build_model_ema"):
        ema.EMAHook(cfg, model)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_decay_is_checked(decay):
    with pytest.raises(ValueError, match="decay"):
        ema.EMAUpdater(ema.EMAState(), decay)
