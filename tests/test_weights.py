import pytest
import torch
from torch import nn

from decodner_hf.weights_decodner import WeightsWatch


class Adapted(nn.Module):
    """A layer as PEFT leaves it."""

    def __init__(self):
        super().__init__()
        self.base_layer = nn.Linear(2, 2)
        self.active_adapters, self.disable_adapters = ["first"], False


def write(model):
    with torch.no_grad():
        model[0].weight.add_(1)


def replace_parameter(model):
    fresh = nn.Parameter(model[0].bias.detach().clone())
    with torch.no_grad():
        while fresh._version < model[0].bias._version:  # written as often as the one it replaces
            fresh.add_(0)
    model[0].bias = fresh


def replace_module(model):
    model[1] = nn.Linear(2, 2)


def add_parameter(model):
    model[0].extra = nn.Parameter(torch.zeros(1))


def switch_adapter(model):
    model[2].active_adapters = ["second"]


def disable_adapters(model):
    model[2].disable_adapters = True


@pytest.mark.parametrize(
    "change",
    [write, replace_parameter, replace_module, add_parameter, switch_adapter, disable_adapters],
    ids=lambda change: change.__name__,
)
def test_a_change_is_noticed_once(change):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), Adapted())
    model._hf_peft_config_loaded = True
    watch = WeightsWatch(model)
    assert not watch.changed()
    change(model)
    assert watch.changed()
    assert not watch.changed()


def test_adapters_that_came_later_are_watched_too():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    watch = WeightsWatch(model)
    model[1] = Adapted()
    model._hf_peft_config_loaded = True
    assert watch.changed()
    model[1].active_adapters = ["second"]
    assert watch.changed()


def test_weights_made_for_inference_can_be_watched():
    with torch.inference_mode():
        model = nn.Linear(2, 2)
    assert not WeightsWatch(model).changed()
