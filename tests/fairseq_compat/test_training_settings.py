"""Settings that fairseq ends on with a traceback: those that work now, and those that are refused."""

import pytest
import torch
from fairseq import options

from megalodon_tasks.errors import UserError
from tests.toy_plugin import runs

ONE_EPOCH = ("--max-epoch", "1")


def parsed(*words):
    parser = options.get_training_parser()
    return options.parse_args_and_arch(parser, [*runs.SETTINGS, *words])


@pytest.mark.parametrize("option", ["--bf16", "--memory-efficient-bf16"])
def test_bf16_is_not_tpu(option):
    arguments = parsed(option)
    assert (arguments.bf16, arguments.tpu) == (True, False)
    assert parsed(option, "--tpu").tpu
    assert not parsed().bf16


def test_bf16_trains_on_the_command_line(tmp_path):
    runs.train(tmp_path, "--bf16", *ONE_EPOCH)
    common = torch.load(tmp_path / "checkpoint_last.pt")["cfg"]["common"]
    assert (common["bf16"], common["tpu"]) == (True, False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--memory-efficient-fp16"], "optimizer adamw_groups cannot train in this precision"),
        (["--tpu"], "common.tpu=true .* needs torch_xla"),
        (["--tpu", "--bf16"], "common.tpu=true .* needs torch_xla"),
        (["--memory-efficient-bf16"], "optimizer adamw_groups cannot train in this precision"),
        (
            ["--distributed-world-size", "2", "--ddp-backend", "slowmo"],
            "ddp_backend=slowmo needs a GPU",
        ),
    ],
)
def test_what_a_cpu_cannot_do_is_refused(tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        runs.train(tmp_path, *settings, *ONE_EPOCH)


@pytest.mark.parametrize("again", [False, True])
def test_no_limit_of_a_batch_is_refused(tmp_path, monkeypatch, again):
    if again:
        runs.train(tmp_path, *ONE_EPOCH)
    at = runs.SETTINGS.index("--batch-size")
    monkeypatch.setattr(runs, "SETTINGS", runs.SETTINGS[:at] + runs.SETTINGS[at + 2 :])
    with pytest.raises(UserError, match=r"neither dataset.batch_size .* nor dataset.max_tokens"):
        runs.train(tmp_path)
