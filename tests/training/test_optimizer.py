"""The optimizer against torch's own, the schedule against its closed form."""

import copy
from types import SimpleNamespace

import pytest
import torch
from fairseq import optim as fairseq_optim
from fairseq.optim import lr_scheduler
from omegaconf import OmegaConf

from megalodon_tasks.errors import UserError
from megalodon_tasks.training.optimizer import NO_WEIGHT_DECAY, AdamWGroups, LinearDecay
from tests.toy_plugin import runs

STEPS = 5


def optimizer_settings(**changes):
    settings = {
        "_name": "adamw_groups",
        "adam_betas": "(0.9, 0.98)",
        "adam_eps": 1e-8,
        "weight_decay": 0.1,
        "lr": [0.01],
    }
    return OmegaConf.create({**settings, **changes})


def make_model(dtype=torch.float32):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8)).to(dtype)
    for parameter in model[1].parameters():
        parameter.param_group = NO_WEIGHT_DECAY
    return model


def parameters():
    # a list: fairseq's build_optimizer would lose the first item of a generator
    return list(make_model().parameters())


def gradients(model, step):
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        shape = parameter.shape
        parameter.grad = torch.randn(shape, generator=generator).to(parameter.dtype)


def test_equals_torch_adamw_with_two_groups():
    model = make_model()
    other = copy.deepcopy(model)
    optimizer = fairseq_optim.build_optimizer(optimizer_settings(), list(model.parameters()))
    assert isinstance(optimizer, AdamWGroups)
    groups = [
        {"params": other[0].parameters()},
        {"params": other[1].parameters(), "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.98), weight_decay=0.1)
    for step in range(STEPS):
        gradients(model, step)
        gradients(other, step)
        optimizer.step()
        reference.step()
    for found, expected in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_equals_fairseq_adam_up_to_epsilon():
    model = make_model()
    other = copy.deepcopy(model)
    settings = optimizer_settings(weight_decay=0)
    ours = fairseq_optim.build_optimizer(settings, list(model.parameters()))
    stock = optimizer_settings(
        _name="adam", weight_decay=0, use_old_adam=True, fp16_adam_stats=False, tpu=False
    )
    theirs = fairseq_optim.build_optimizer(stock, list(other.parameters()))
    for step in range(STEPS):
        gradients(model, step)
        gradients(other, step)
        ours.step()
        theirs.step()
    for found, expected in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_only_untagged_parameters_decay():
    model = make_model()
    optimizer = fairseq_optim.build_optimizer(optimizer_settings(), list(model.parameters()))
    before = [p.detach().clone() for p in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    decayed = [not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True)]
    # the bias of the linear layer starts random, so it decays too
    assert decayed == [True, True, False, False]
    torch.testing.assert_close(model[0].weight, before[0] * (1 - 0.01 * 0.1))


def test_vectors_can_be_spared():
    """As usual for vision: biases, scales and all that extends along one axis only."""
    shapes = [(4, 8), (8,), (8, 1), (1, 1, 3), (), (2, 8, 1)]
    given = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    for spare, exempt in ((False, []), (True, [(8,), (8, 1), (1, 1, 3), ()])):
        optimizer = fairseq_optim.build_optimizer(optimizer_settings(spare_vectors=spare), given)
        without = [group for group in optimizer.param_groups if group["weight_decay"] == 0]
        assert [tuple(p.shape) for group in without for p in group["params"]] == exempt


@pytest.mark.parametrize("tagged", ["none", "all"])
def test_one_group_is_enough(tagged):
    model = torch.nn.Linear(2, 2)
    if tagged == "all":
        for parameter in model.parameters():
            parameter.param_group = NO_WEIGHT_DECAY
    optimizer = fairseq_optim.build_optimizer(optimizer_settings(), list(model.parameters()))
    assert len(optimizer.param_groups) == 1
    assert optimizer.param_groups[0]["weight_decay"] == (0.0 if tagged == "all" else 0.1)


def test_state_is_restored_exactly():
    model = make_model()
    optimizer = fairseq_optim.build_optimizer(optimizer_settings(), list(model.parameters()))
    for step in range(STEPS):
        gradients(model, step)
        optimizer.step()
    other = copy.deepcopy(model)
    for parameter in other[1].parameters():
        parameter.param_group = NO_WEIGHT_DECAY  # deepcopy drops it
    resumed = fairseq_optim.build_optimizer(optimizer_settings(), list(other.parameters()))
    saved = copy.deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        group["fused"] = None  # as if it came from a machine that could not
    resumed.load_state_dict(saved)
    for step in range(STEPS, 2 * STEPS):
        for one, its_optimizer in ((model, optimizer), (other, resumed)):
            gradients(one, step)
            its_optimizer.step()
    runs.assert_equal(other.state_dict(), model.state_dict())
    runs.assert_equal(resumed.state_dict(), optimizer.state_dict())


def fp16_settings(**common):
    return OmegaConf.create(
        {
            "optimizer": optimizer_settings(),
            "common": {"fp16_scale_window": 128, "fp16_init_scale": 4, "threshold_loss_scale": None,
                       "fp16_scale_tolerance": 0.0, "min_loss_scale": 1e-4, **common},
            "optimization": {"update_freq": [1]},
            "distributed_training": {"distributed_world_size": 1},
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("dtype", "common"),
    [
        (torch.bfloat16, {"bf16": True}),
        (torch.float16, {"bf16": False, "fp16_no_flatten_grads": True}),
    ],
)
def test_half_precision_models_have_grouped_float32_masters(dtype, common):
    model = make_model(dtype)
    optimizer = fairseq_optim.FP16Optimizer.build_optimizer(
        fp16_settings(**common), list(model.parameters())
    )
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert {p.dtype for p in optimizer.fp32_optimizer.params} == {torch.float32}
    before = model[0].weight.detach().clone()
    optimizer.zero_grad()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer._needs_sync = True  # what backward() does
    optimizer.step()
    assert model[0].weight.dtype == dtype
    assert not torch.equal(model[0].weight, before)


@pytest.mark.parametrize(("weight_decay", "supported"), [(0.1, False), (0.0, True)])
def test_flat_parameters_only_without_decay(weight_decay, supported):
    settings = optimizer_settings(weight_decay=weight_decay)
    optimizer = fairseq_optim.build_optimizer(settings, parameters())
    assert optimizer.supports_flat_params is supported
    assert not optimizer.supports_memory_efficient_fp16


@pytest.mark.parametrize("betas", ["0.9", "(0.9, 1.0)", "(a, b)", "(0.9, 0.98, 0.99)", "(-1, 0)"])
def test_bad_betas_are_named(betas):
    with pytest.raises(UserError, match="optimizer.adam_betas="):
        fairseq_optim.build_optimizer(optimizer_settings(adam_betas=betas), parameters())


def schedule_settings(**changes):
    settings = {
        "_name": "linear_decay",
        "warmup_updates": 10,
        "warmup_init_lr": 1e-7,
        "warmup_power": 1.0,
        "end_learning_rate": 0.0,
        "total_num_update": None,
        "max_update": 50,
        "lr": [0.01],
    }
    return OmegaConf.create({**settings, **changes})


def make_schedule(**changes):
    optimizer = fairseq_optim.build_optimizer(optimizer_settings(), parameters())
    return lr_scheduler.build_lr_scheduler(schedule_settings(**changes), optimizer), optimizer


@pytest.mark.parametrize("power", [1.0, 2.0, 0.5])
@pytest.mark.parametrize("end", [0.0, 1e-4])
def test_schedule_equals_its_closed_form(power, end):
    schedule, optimizer = make_schedule(warmup_power=power, end_learning_rate=end)
    assert isinstance(schedule, LinearDecay)
    assert optimizer.get_lr() == 1e-7
    for update in range(60):
        if update <= 10:
            expected = 1e-7 + update**power * (0.01 - 1e-7) / 10**power
        else:
            expected = max(end, end + (0.01 - end) * (50 - update) / 40)
        assert schedule.step_update(update) == pytest.approx(expected, rel=1e-12, abs=1e-18)
        assert {group["lr"] for group in optimizer.param_groups} == {optimizer.get_lr()}


@pytest.mark.parametrize(
    ("changes", "update", "expected"),
    [
        ({"warmup_updates": 0}, 0, 0.01),
        ({"total_num_update": 20}, 20, 0.0),
        ({"total_num_update": 20}, 15, 0.005),
        ({"max_update": 20, "warmup_updates": 20}, 20, 0.0),
    ],
)
def test_schedule_corners(changes, update, expected):
    schedule, _ = make_schedule(**changes)
    assert schedule.step_update(update) == pytest.approx(expected)


def test_a_run_shorter_than_its_warmup_is_allowed_and_mentioned(caplog):
    schedule, _ = make_schedule(max_update=5)
    assert schedule.step_update(4) == pytest.approx(1e-7 + 0.4 * (0.01 - 1e-7))
    assert "warmup_updates=10 is not below the 5 updates" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_update": 0}, "optimization.max_update"),
        ({"warmup_updates": -1}, "warmup_updates=-1"),
        ({"warmup_power": 0.0}, "warmup_power=0.0"),
        ({"lr": [0.1, 0.2]}, "one learning rate"),
    ],
)
def test_bad_schedules_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        make_schedule(**changes)


def test_command_line_and_yaml_give_the_same_defaults():
    from fairseq import options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    parsed = options.parse_args_and_arch(options.get_training_parser(), input_args=runs.SETTINGS)
    cfg = convert_namespace_to_omegaconf(parsed)
    schedule = LinearDecay(cfg.lr_scheduler, AdamWGroups(cfg.optimizer, parameters()))
    assert schedule.total == 20
    assert cfg.lr_scheduler.warmup_init_lr == 1e-7
    assert SimpleNamespace(**cfg.optimizer).adam_betas == "(0.9, 0.98)"
