"""``common.bf16`` and ``common.fp16`` on a CPU: they train, overflow, and resume; others are refused."""

import pytest
import torch
from fairseq.dataclass.configs import CommonConfig
from fairseq.optim.fp16_optimizer import FP16Optimizer
from omegaconf import OmegaConf

from megalodon_tasks.errors import UserError
from megalodon_tasks.fairseq_compat import precision
from megalodon_tasks.runs.record import read_run
from tests.toy_plugin import runs

FLAGS = ("--bf16", "--fp16")


def updates_of(save_dir):
    return runs.state_of(save_dir)["updates"]


@pytest.mark.parametrize("flag", FLAGS)
def test_a_resumed_run_is_that_of_an_uninterrupted_one(tmp_path, flag):
    settings = (flag, "--total-num-update", "20")
    runs.train(tmp_path / "whole", *settings)
    runs.train(tmp_path / "parts", *settings, "--max-update", "8")
    runs.train(tmp_path / "parts", *settings)
    states = [runs.state_of(tmp_path / name) for name in ("parts", "whole")]
    assert states[0]["updates"] == 20
    runs.assert_equal(*states)


def test_masters_are_not_the_rounded_parameters(tmp_path):
    runs.train(tmp_path, "--bf16")
    state = runs.state_of(tmp_path)
    masters = state["optimizer"]["masters"]
    assert any((m != m.bfloat16().float()).any() for m in masters)
    rounded = [p for p in state["model"].values() if p.is_floating_point()]
    assert len(rounded) == len(masters)
    for parameter, master in zip(rounded, masters, strict=True):
        torch.testing.assert_close(parameter, master.bfloat16().float())


def test_a_checkpoint_without_masters_is_resumed(tmp_path):
    runs.train(tmp_path, "--bf16", "--max-update", "8")
    path = tmp_path / "checkpoint_last.pt"
    state = torch.load(path)
    del state["last_optimizer_state"]["masters"]
    torch.save(state, path)
    runs.train(tmp_path, "--bf16")
    assert updates_of(tmp_path) == 20


def test_an_overflow_lowers_the_scale_and_skips_the_update(tmp_path):
    scale = 2.0**20
    runs.train(tmp_path, "--fp16", "--fp16-init-scale", str(int(scale)), "--log-interval", "1")
    state = torch.load(tmp_path / "checkpoint_last.pt")
    assert state["last_optimizer_state"]["loss_scale"] < scale
    assert updates_of(tmp_path) == 20
    assert all(p.isfinite().all() for p in state["model"].values())
    scales = [line["loss_scale"] for line in read_run(tmp_path).train_inner.values()]
    assert scales[-1] < scale


def test_an_overflow_that_nothing_helps_ends_the_run(tmp_path, monkeypatch):
    unscaled = FP16Optimizer.clip_grad_norm
    infinite = torch.tensor(float("inf"))

    def clip_grad_norm(self, *words, **options):
        unscaled(self, *words, **options)
        self.scaler.check_overflow(infinite)

    monkeypatch.setattr(FP16Optimizer, "clip_grad_norm", clip_grad_norm)
    with pytest.raises(UserError, match="training diverged at update 1: a gradient is not finite"):
        runs.train(tmp_path, "--fp16", "--min-loss-scale", "100")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--amp"], r"common.amp=true \(--amp\) has no effect without a GPU"),
        (["--fp16-no-flatten-grads"], "fp16_no_flatten_grads=true has no effect by itself"),
        (["--on-cpu-convert-precision"], "set common.fp16=true or common.bf16=true too"),
        (["--amp", "--fp16"], "common.fp16=true and common.amp=true: a model"),
        (["--amp", "--bf16"], "common.bf16=true and common.amp=true: a model"),
    ],
)
def test_what_would_have_no_effect_is_refused(tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        runs.train(tmp_path, *settings)


@pytest.mark.parametrize("name", ["memory_efficient_fp16", "memory_efficient_bf16"])
def test_a_refinement_in_yaml_needs_what_it_refines(name):
    """On the command line fairseq sets both."""
    common = OmegaConf.structured(CommonConfig)
    common[name] = True
    with pytest.raises(UserError, match=f"common.{name}=true has no effect by itself; set common"):
        precision.check_settings(common, on_gpu=True)
