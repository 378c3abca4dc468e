import pytest
import torch
from architectures import tiny_config, tiny_model
from torch import nn

from decodner_hf.core.weights import WeightsWatch


class Adapted(nn.Module):
    """A layer as PEFT leaves it."""

    def __init__(self):
        super().__init__()
        self.base_layer = nn.Linear(2, 2)
        self.active_adapters, self.disable_adapters = ["first"], False
        self.scaling = {"first": 1.0}


def write(model):
    with torch.no_grad():
        model[0].weight.add_(1)


def replace_parameter(model):
    fresh = nn.Parameter(model[0].bias.detach().clone())
    with torch.no_grad():
        while fresh._version < model[0].bias._version:  # written as often as the one it replaces
            fresh.add_(0)
    model[0].bias = fresh


def replace_values(model):
    model[0].weight.data = torch.ones(2, 2)


def cast(model):
    model.double()


def replace_module(model):
    model[1] = nn.Linear(2, 2)


def add_parameter(model):
    model[0].extra = nn.Parameter(torch.zeros(1))


def switch_adapter(model):
    model[2].active_adapters = ["second"]


def disable_adapters(model):
    model[2].disable_adapters = True


def rescale_adapter(model):
    model[2].scaling["first"] *= 2


@pytest.mark.parametrize(
    "change",
    [
        write,
        replace_parameter,
        replace_values,
        cast,
        replace_module,
        add_parameter,
        switch_adapter,
        disable_adapters,
        rescale_adapter,
    ],
    ids=lambda change: change.__name__,
)
def test_a_change_is_noticed_once(change):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), Adapted())
    watch = WeightsWatch(model)
    assert not watch.changed()
    change(model)
    assert watch.changed()
    assert not watch.changed()


@pytest.mark.parametrize(
    ("change", "noticed"),
    [
        *((change, True) for change in (replace_parameter, replace_values, cast, replace_module, add_parameter)),
        *((change, False) for change in (write, switch_adapter)),
    ],
)
def test_of_replacements_alone_other_changes_are_none(change, noticed):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), Adapted())
    watch = WeightsWatch(model)
    assert not watch.replaced()
    change(model)
    assert watch.replaced() == noticed
    assert not watch.replaced()


def test_adapters_that_came_later_are_watched_too():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    watch = WeightsWatch(model)
    model[1] = Adapted()
    assert watch.changed()
    model[1].active_adapters = ["second"]
    assert watch.changed()


@pytest.mark.parametrize("options", [{}, {"modules_to_save": ["lm_head"]}], ids=["lora", "with_a_whole_module"])
def test_adapters_that_peft_put_in_by_itself_are_watched(options):
    peft = pytest.importorskip("peft")
    backbone = tiny_model(tiny_config("llama"))
    adapted = peft.get_peft_model(backbone, peft.LoraConfig(target_modules=["q_proj"], **options))
    watch = WeightsWatch(backbone)
    with adapted.disable_adapter():
        assert watch.changed()
    assert watch.changed()
    assert not watch.changed()


def test_weights_made_for_inference_can_be_watched():
    with torch.inference_mode():
        model = nn.Linear(2, 2)
    assert not WeightsWatch(model).changed()
