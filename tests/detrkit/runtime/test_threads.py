"""The number of CPU threads: what is chosen, when it is measured again, and what a resumed run keeps."""

import pytest
import torch

from detrkit.runtime import threads as module
from detrkit.runtime.threads import ROUNDS, WARM_UP, ThreadChooser, number_of_threads_kept


@pytest.fixture
def machine(monkeypatch):
    """Two cores: `machine.seconds[n]` is what a piece of work takes with n threads."""

    class Machine:
        seconds = {1: 1.0, 2: 1.0}
        threads, now = 2, 0.0

        def set_num_threads(self, count):
            self.threads = count

        def work(self, chooser, times=1):
            used = []
            for _ in range(times):
                with chooser.work():
                    self.now += self.seconds[self.threads]
                    used.append(self.threads)
            return used

    machine = Machine()
    for name in module.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: machine.threads)
    monkeypatch.setattr(torch, "set_num_threads", machine.set_num_threads)
    monkeypatch.setattr(module.time, "perf_counter", lambda: machine.now)
    return machine


PROBE = WARM_UP + 2 * ROUNDS


@pytest.mark.parametrize(
    "one, two, chosen",
    [(0.25, 0.217, 2), (0.37, 1.2, 1), (1.0, 0.97, 1), (1.0, 0.94, 2)],
    ids=["idle", "busy neighbour", "hardly faster", "faster"],
)
def test_more_threads_have_to_be_worth_their_cores(machine, one, two, chosen):
    """Protects a shared machine from a step three times as long, and an idle one from a core unused."""
    machine.seconds = {1: one, 2: two}
    chooser = ThreadChooser("cpu")
    assert set(machine.work(chooser, PROBE)) == {1, 2} and chooser.chosen == chosen
    assert machine.work(chooser, 50) == [chosen] * 50


def test_a_neighbour_that_starts_later_is_noticed(machine):
    """Protects long trainings: a step that takes much longer than it did is measured again."""
    machine.seconds = {1: 0.25, 2: 0.2}
    chooser = ThreadChooser("cpu")
    machine.work(chooser, PROBE + 30)
    machine.seconds = {1: 0.37, 2: 1.2}
    machine.work(chooser, 40)
    assert chooser.chosen == 1
    machine.seconds = {1: 0.6, 2: 2.0}  # one thread is the least there is: nothing is measured again
    assert set(machine.work(chooser, 60)) == {1}


@pytest.mark.parametrize("name", module.VARIABLES)
def test_the_users_number_stands(machine, monkeypatch, name):
    """Protects who sets a number: nothing is measured, whatever it costs."""
    monkeypatch.setenv(name, "2")
    machine.seconds = {1: 0.1, 2: 9.0}
    chooser = ThreadChooser("cpu")
    assert set(machine.work(chooser, 30)) == {2}


def test_a_resumed_run_keeps_its_number(machine):
    """Protects exact resume: rounding depends on the number of threads."""
    machine.seconds = {1: 0.37, 2: 1.2}
    first = ThreadChooser("cpu")
    machine.work(first, PROBE)
    state = first.state_dict()
    machine.threads, machine.seconds = 2, {1: 1.0, 2: 0.1}
    second = ThreadChooser("cpu")
    second.load_state_dict(state)
    assert machine.work(second, 30) == [1] * 30


def test_a_gpu_is_not_measured(machine):
    """Protects GPU trainings from waiting for nothing."""
    assert set(machine.work(ThreadChooser("cuda"), 20)) == {2}


def test_the_number_of_the_process_comes_back():
    """Protects programs that train: their own number of threads is theirs."""
    before = torch.get_num_threads()
    with number_of_threads_kept():
        torch.set_num_threads(before + 1)
    assert torch.get_num_threads() == before
