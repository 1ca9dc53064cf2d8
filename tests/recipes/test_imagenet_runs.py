"""The demo from nothing to its accuracy, two processes, and a step at full size."""

import os
import subprocess
import sys

import pytest
import torch

from megalodon_tasks.models.classifier import ClassifierInputs, SequenceClassifier
from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.presets import CLASSIFIER_PRESETS
from megalodon_tasks.runs.record import read_run
from tests.recipes.run_scripts import ROOT, run_demo

pytestmark = pytest.mark.slow

SCRIPT = ROOT / "recipes" / "imagenet" / "imagenet.sh"


def test_the_demo_learns_digits(tmp_path):
    _, (record,) = run_demo(SCRIPT, tmp_path)
    assert (record["benchmark"], record["split"], record["n"]) == (
        "imagenet/imagenet-demo", "test", 300,
    )  # fmt: skip
    assert record["value"] >= 95.0


def test_a_step_at_full_size(capsys):
    """Base, four images of 224 x 224: all gradients are there and the loss falls."""
    torch.manual_seed(0)
    config = MegalodonConfig(**CLASSIFIER_PRESETS["megalodon_imagenet_base"], drop_path=0.2)
    model = SequenceClassifier(config, ClassifierInputs("patches", 1000)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    images, target = torch.randn(4, 3, 224, 224), torch.tensor([1, 2, 3, 999])
    losses = []
    for _ in range(3):
        loss = torch.nn.functional.cross_entropy(model(images), target, label_smoothing=0.1)
        loss.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[2] < losses[0]


def test_two_processes_train_and_resume_as_one_run(tmp_path):
    """Over gloo: the shares of repeated augmentation, averaged weights, a second start."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def run(*command):
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    prepare = (sys.executable, "-m", "megalodon_tasks", "prepare", "imagenet/imagenet")
    run(*prepare, "images", "index", "--demo")
    worker = tmp_path / "worker.sh"
    worker.write_text(
        f"""exec {sys.executable} -m megalodon_tasks train --config-dir {SCRIPT.parent} \\
        --config-name imagenet_demo --data index --save-dir run "$@" common.cpu=true \\
        model.num_layers=1 dataset.num_workers=0 dataset.validate_interval=1 ema.store_ema=true \\
        task.effective_batch=128 \\
        checkpoint.load_checkpoint_on_all_dp_ranks=true distributed_training.distributed_world_size=2 \\
        distributed_training.distributed_rank=$RANK distributed_training.distributed_no_spawn=true \\
        distributed_training.distributed_init_method=env:// \\
        distributed_training.distributed_backend=gloo distributed_training.ddp_backend=legacy_ddp
        """
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    for port, updates in ((29611, 12), (29612, 25)):
        run(*launch, f"--master-port={port}", "--no-python", "bash", str(worker),
            f"optimization.max_update={updates}")  # fmt: skip
    # 1,280 of 1,297 images, 640 for each process: 10 updates of 128 an epoch
    epochs = read_run(tmp_path / "run").train
    assert epochs[10]["epoch"] == 1
    state = torch.load(tmp_path / "run" / "checkpoint_last.pt")
    assert state["optimizer_history"][-1]["num_updates"] == 25
