"""The parts of `detrkit.training`, each on its own."""

import itertools

import torch
from detectron2.data import build_detection_train_loader
from detectron2.utils.events import EventStorage
from torch import nn

from detrkit.training.stream import ResumableLoader, SampleStream
from detrkit.training.trainer import Trainer, stride_gradients_as_parameters


class Loss(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, batch):
        return {"loss": self.layer(batch).square().mean()}


def trainer():
    model = Loss()
    return Trainer(model, itertools.repeat(torch.ones(2, 1)), torch.optim.SGD(model.parameters(), lr=0.1))


def test_memory_does_not_grow_with_the_iterations():
    """Of each metric a run keeps what is looked at, not every value: that was hundreds of megabytes in a long one."""
    run = trainer()
    run.train(0, 1100)
    assert len(run.storage.history("total_loss").values()) == 1000


def test_a_run_with_nothing_left_to_do_ends_at_its_last_iteration():
    """The evaluation behind it is recorded where that of the uninterrupted run is."""
    run = trainer()
    run.train(5, 5)
    assert run.iter == run.storage.iter == 5


class ChannelsLast(torch.autograd.Function):
    """Gives gradients the strides that oneDNN gives those of large 1×1 convolutions."""

    @staticmethod
    def forward(context, weight):
        return weight.clone()

    @staticmethod
    def backward(context, gradient):
        channels = gradient.shape[1]
        return gradient.as_strided(gradient.shape, (channels, 1, channels, channels))


def test_gradients_lie_as_the_buckets_of_two_processes_do():
    """DistributedDataParallel warned of 1×1 convolutions at the start of every run, and took a slower way."""
    layer = nn.Conv2d(3, 5, 1)
    stride_gradients_as_parameters(layer)
    ChannelsLast.apply(layer.weight).square().sum().backward()
    assert layer.weight.grad.stride() == layer.weight.stride()
    assert torch.equal(layer.weight.grad, 2 * layer.weight.detach())


IMAGES = [{"width": 2 + number % 3, "height": 3, "number": number} for number in range(7)]


def noisy(image):
    return {**image, "noise": torch.rand(()).item()}


def build(workers=0, batch=2, grouping=True):
    def batches(stream, collate):
        return build_detection_train_loader(
            stream,
            mapper=None,
            total_batch_size=batch,
            num_workers=workers,
            aspect_ratio_grouping=grouping,
            collate_fn=collate,
        )

    return ResumableLoader(IMAGES, noisy, batches, chunk=1 if grouping else batch)


def take(loader, count):
    return [[(item["number"], item["noise"]) for item in batch] for batch in itertools.islice(loader, count)]


def test_a_loader_goes_on_where_it_was():
    """With images that wait for others of their shape, and whatever the number of data workers, then and now."""
    for grouping in (True, False):
        first = build(grouping=grouping)
        iterator = iter(first)
        head = take(iterator, 5)
        state = first.state_dict()
        tail = take(iterator, 6)
        for workers in (0, 2):
            second = build(workers, grouping=grouping)
            assert second.load_state_dicts([state]) == ""
            assert take(second, 6) == tail
        assert head[0] != tail[0]


def test_another_batch_size_skips_no_image_and_repeats_none():
    first = build(grouping=False)
    seen = [number for batch in take(first, 3) for number, _ in batch]
    second = build(batch=1, grouping=False)
    second.load_state_dicts([first.state_dict()])
    seen += [number for batch in take(second, 1) for number, _ in batch]
    assert sorted(seen) == list(range(7))


def test_more_processes_before_leave_no_image_out():
    """What two processes had not trained on yet, the one of now does."""
    states = [
        {"seed": 1, "size": 7, "front": 4, "waiting": [2]},
        {"seed": 1, "size": 7, "front": 1, "waiting": []},
    ]
    loader = build()
    assert "1 process(es) now, 2 before" in loader.load_state_dicts(states)
    state = loader.state_dict()
    assert state["waiting"] == [1, 2, 3] and state["front"] == 4


def test_the_streams_random_numbers_leave_those_of_the_model_alone():
    """Without data workers both are drawn in one process; dropout would depend on the data else."""
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    iterator = iter(build())
    first = torch.rand(1)
    next(iterator)
    assert torch.cat([first, torch.rand(1)]).equal(expected)
    assert isinstance(SampleStream(IMAGES, noisy, seed=0).example(9)["noise"], float)
    with EventStorage():
        next(iterator)
