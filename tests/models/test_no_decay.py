"""Parameters without weight decay keep their tag through all that replaces parameters."""

import copy
import io

import pytest
import torch

from megalodon_tasks.models.embeddings import PatchEmbedding
from megalodon_tasks.models.layers.cema import ComplexEMA
from megalodon_tasks.models.layers.no_decay import NO_WEIGHT_DECAY
from megalodon_tasks.training import optimizer

TAGGED = {"0.alpha", "0.delta", "0.theta", "1.position"}


def made(device=None):
    with torch.device(device or "cpu"):
        return torch.nn.Sequential(
            ComplexEMA(6, 2, bidirectional=False), PatchEmbedding(8, (8, 8), 4)
        )


def assigned(model):
    model.load_state_dict(made().state_dict(), assign=True)
    return model


def unpickled(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def on_meta_first(model):
    return made("meta").to_empty(device="cpu")


def moved_to_meta(model):
    return model.to("meta")


def assigned_to_meta(model):
    return assigned(made("meta"))


def swapped(model):
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.load_state_dict(made().state_dict())
        return model.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def overwritten(model):
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        return model.bfloat16()
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


def set_by_hand(model):
    for name in ("alpha", "delta", "theta"):
        setattr(model[0], name, torch.nn.Parameter(getattr(model[0], name).detach().clone()))
    model[1].position = torch.nn.Parameter(model[1].position.detach().clone())
    return model


WAYS = (
    *(
        copy.deepcopy,
        copy.copy,
        assigned,
        unpickled,
        on_meta_first,
        moved_to_meta,
        assigned_to_meta,
    ),
    *(
        swapped,
        overwritten,
        set_by_hand,
        lambda model: copy.deepcopy(assigned(copy.deepcopy(model))),
    ),
)


@pytest.mark.parametrize("way", WAYS)
def test_tags_survive(way):
    tags = {
        name: getattr(parameter, "param_group", None)
        for name, parameter in way(made()).named_parameters()
    }
    assert {name for name, tag in tags.items() if tag == NO_WEIGHT_DECAY} == TAGGED
    assert set(tags.values()) == {None, NO_WEIGHT_DECAY}


def test_the_optimizer_reads_the_same_tag():
    assert optimizer.NO_WEIGHT_DECAY == NO_WEIGHT_DECAY
