"""The language modelling task through fairseq's own commands, on a tiny corpus."""

import math
import re
import shutil

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.data import data_utils

from megalodon_tasks.errors import UserError
from megalodon_tasks.models.fairseq_models import AdaptiveOutput
from megalodon_tasks.recipes.lm.task import MegalodonLanguageModelingTask
from tests.recipes.lm_data import eval_lm, generate, interactive, preprocess, train

ADAPTIVE = [
    "--adaptive-cutoffs",
    "5,9",
    "--criterion",
    "adaptive_loss",
    "--ddp-backend",
    "legacy_ddp",
]
STREAM = ["--stream", "--block-multiple-min", "2", "--block-multiple-max", "3"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return preprocess(tmp_path_factory.mktemp("corpus"), 80, 7)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A trained model; its checkpoint."""
    save_dir = tmp_path_factory.mktemp("run")
    train(data, save_dir, "--max-update", "40")
    return save_dir / "checkpoint_best.pt"


def load(path):
    (model,), cfg, task = checkpoint_utils.load_model_ensemble_and_task([str(path)])
    assert type(task) is MegalodonLanguageModelingTask
    return model.eval(), cfg, task


def bits_of(model, tokens, eos):
    """Mean bits per token of ``tokens`` (N,) read as one row after EOS."""
    source = torch.cat((tokens.new_tensor([eos]), tokens))[:-1]
    nll, _ = model.decoder.lm.nll(source[None], tokens[None])
    return nll.mean().item() / math.log(2)


def lines_of(task, split="test"):
    task.load_dataset(split)
    stream = task.dataset(split).stream
    starts = [0, *stream.line_ends[:-1]]
    return [stream.read(*line) for line in zip(starts, stream.line_ends, strict=True)]


def test_training_learns(data, run):
    state = checkpoint_utils.load_checkpoint_to_cpu(str(run))
    assert state["extra_state"]["best"] < 16  # 16 symbols: 10 words, EOS, the other specials
    assert state["cfg"]["model"]["vocabulary"].startswith("16:")


def test_a_checkpoint_from_before_a_setting_is_loaded(run, tmp_path):
    state = torch.load(run)
    del state["cfg"]["model"]["compile_blocks"]
    torch.save(state, tmp_path / "earlier.pt")
    weights = load(tmp_path / "earlier.pt")[0].state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in state["model"].items())


@pytest.mark.parametrize(
    "arguments",
    [
        ADAPTIVE,
        [*ADAPTIVE, *STREAM],
        ["--documents", "line"],
        ["--documents", "blank", *STREAM, "--checkpoint-activations"],
        ["--sample-break-mode", "complete", "--block-multiple-max", "3", "--update-freq", "2"],
        ["--eval-mode", "blocks", "--sample-break-mode", "eos"],
    ],
    ids=" ".join,
)
def test_every_way_trains_and_is_evaluated(data, tmp_path, arguments):
    train(data, tmp_path, *arguments)
    model, cfg, _ = load(tmp_path / "checkpoint_best.pt")
    adaptive = isinstance(model.decoder.adaptive_softmax, AdaptiveOutput)
    assert adaptive == (cfg.criterion._name == "adaptive_loss")
    assert eval_lm(data, tmp_path / "checkpoint_best.pt")["perplexity"] < 40


def test_eval_lm_reads_one_stream_with_all_its_context(data, run):
    model, _, task = load(run)
    expected = bits_of(model, torch.cat(lines_of(task)), task.dictionary.eos())
    for pieces in (["--tokens-per-sample", "3"], ["--tokens-per-sample", "16"]):
        result = eval_lm(data, run, "--eval-streams", "1", *pieces)
        assert result["loss"].item() == pytest.approx(expected, abs=1e-3)


def test_eval_lm_keeps_documents_apart(data, run):
    model, _, task = load(run)
    lines = lines_of(task)
    bits = [bits_of(model, line, task.dictionary.eos()) * len(line) for line in lines]
    expected = sum(bits) / sum(map(len, lines))
    for arguments in (
        ["--documents", "line", "--eval-streams", "4", "--tokens-per-sample", "3"],
        ["--eval-mode", "blocks", "--sample-break-mode", "eos"],
        ["--documents", "line", "--eval-mode", "blocks", "--tokens-per-sample", "1000"],
    ):
        assert eval_lm(data, run, *arguments)["loss"].item() == pytest.approx(expected, abs=1e-3)


def test_eval_lm_with_a_context_window(data, run):
    blocks = ["--eval-mode", "blocks", "--batch-size", "1"]
    alone = eval_lm(data, run, *blocks, "--tokens-per-sample", "4")
    # fairseq takes the window from the length of the sample.
    window = eval_lm(data, run, *blocks, "--tokens-per-sample", "12", "--context-window", "8")
    assert window["loss"] != alone["loss"]
    with pytest.raises(UserError, match="--context-window 8 is for blocks.*--eval-mode blocks"):
        eval_lm(data, run, "--context-window", "8")


def test_validation_is_stateful(data, tmp_path, run):
    """The validation loss in the log is that of ten streams, each read with all its context."""
    model, cfg, task = load(run)
    task.load_dataset("valid")
    dataset = task.dataset("valid")
    dataset.lay_out(10, 1)
    total = 0.0
    for start, stop in zip(dataset.row_edges, dataset.row_edges[1:], strict=False):
        source, target = dataset.stream.source_and_target(int(start), int(stop))
        total += model.decoder.lm.nll(source[None], target[None])[0].sum().item()
    state = checkpoint_utils.load_checkpoint_to_cpu(str(run))
    ppl = math.exp(total / len(dataset.stream))
    assert state["extra_state"]["val_loss"] == pytest.approx(ppl, abs=0.02)


@pytest.mark.parametrize(
    ("limits", "rows"),
    [
        (["--batch-size", "3"], 3),
        (["--batch-size", "3", "--max-tokens", "48"], 2),
        (["--batch-size", "1", "--max-tokens", "999"], 1),
    ],
)
def test_training_on_rows_keeps_both_limits(data, tmp_path, limits, rows):
    train(data, tmp_path, *STREAM, *limits, "--max-update", "1")
    state = checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / "checkpoint_last.pt"))
    (carried,) = state["extra_state"]["MegalodonLanguageModelingTask"]["states"]
    assert carried["norm"]["count"].shape == (rows,)


@pytest.mark.parametrize("size", [3, 32])
def test_the_chunk_size_in_evaluation_is_that_of_the_task(data, tmp_path, size):
    """In validation, and in fairseq's own evaluation of the checkpoint; training has its own."""
    words = ["--max-update", "9", "--validate-interval-updates", "4", *STREAM]
    train(data, tmp_path / "other", *words, "--eval-chunk-size", str(size))
    train(data, tmp_path / "same", *words)
    other, same = (
        checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / name / "checkpoint_last.pt"))
        for name in ("other", "same")
    )
    assert all(torch.equal(tensor, same["model"][name]) for name, tensor in other["model"].items())
    losses = [state["extra_state"]["val_loss"] for state in (other, same)]
    assert losses[0] != losses[1]
    checkpoint = tmp_path / "other" / "checkpoint_last.pt"
    found = [
        eval_lm(data, checkpoint, "--gen-subset", "valid", *words)["perplexity"].item()
        for words in (["--eval-chunk-size", str(size)], [])
    ]
    assert found == pytest.approx(losses, abs=0.006)  # two digits are recorded


def test_an_impossible_chunk_size_in_evaluation_is_refused(data, tmp_path):
    with pytest.raises(UserError, match="task.eval_chunk_size=0 is not a positive number of steps"):
        train(data, tmp_path, "--eval-chunk-size", "0")


@pytest.mark.parametrize("documents", ["none", "line"])
def test_resumed_stream_is_exact(data, tmp_path, documents):
    arguments = [*STREAM, "--documents", documents, "--save-interval-updates", "4"]
    arguments += ["--max-update", "9", "--dropout", "0.1"]
    train(data, tmp_path / "whole", *arguments)
    middle = tmp_path / "whole" / "checkpoint_1_4.pt"
    train(data, tmp_path / "resumed", *arguments, "--restore-file", str(middle))
    one, other = (
        checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / name / "checkpoint_last.pt"))
        for name in ("whole", "resumed")
    )
    assert one["extra_state"]["train_iterator"] == other["extra_state"]["train_iterator"]
    for name, tensor in one["model"].items():
        assert torch.equal(tensor, other["model"][name]), name


def test_state_is_carried_between_updates_and_dropped_at_the_end_of_an_epoch(data, tmp_path):
    arguments = [*STREAM, "--save-interval-updates", "3", "--max-epoch", "1", "--max-update", "99"]
    train(data, tmp_path, *arguments)

    def states(name):
        state = checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / name))
        return state["extra_state"]["MegalodonLanguageModelingTask"]["states"]

    (middle,) = states("checkpoint_1_3.pt")
    read = middle["blocks"][0]["norm"]["count"]
    assert read.shape == (2,)
    assert read.min() >= 3 * 16
    assert states("checkpoint_last.pt") == [None]


def test_resume_with_other_rows_is_refused(data, tmp_path, caplog):
    arguments = [*STREAM, "--save-interval-updates", "3", "--max-update", "8"]
    train(data, tmp_path / "two", *arguments)
    middle = str(tmp_path / "two" / "checkpoint_1_3.pt")
    other_rows = [*arguments, "--batch-size", "1", "--restore-file", middle]
    with pytest.raises(UserError, match="items would be left out or read twice"):
        train(data, tmp_path / "one", *other_rows)
    state = torch.load(middle)
    del state["extra_state"]["train_iterator"]["batches"]  # as earlier versions wrote it
    torch.save(state, middle)
    train(data, tmp_path / "one", *other_rows)
    assert "the checkpoint has no state for the rows" in caplog.text


def hypotheses(text):
    return {m[1]: m[2] for m in re.finditer(r"^H-(\d+)\t\S+\t(.*)$", text, re.M)}


def test_interactive_continues_prompts_of_any_length(data, run, tmp_path, capsys):
    prompts = ["alpha beta", "", "gamma delta epsilon zeta eta theta iota kappa alpha beta"]
    (tmp_path / "prompts").write_text("".join(f"{p}\n" for p in prompts))
    settings = [
        "--buffer-size",
        "3",
        "--batch-size",
        "3",
        "--beam",
        "3",
        "--max-len-b",
        "20",
        "--min-len",
        "14",
    ]
    interactive(data, run, "--input", str(tmp_path / "prompts"), *settings)
    found = hypotheses(capsys.readouterr().out)
    assert [found[str(i)].startswith(p) for i, p in enumerate(prompts)] == [True] * 3
    assert found["0"] != prompts[0]


@pytest.mark.parametrize(
    ("prompts", "min_len"),
    [(["alpha beta", "", "gamma delta epsilon"], 3), (["", "alpha", "alpha beta", ""], 2)],
)
def test_a_prompt_continues_in_a_batch_as_by_itself(data, run, tmp_path, capsys, prompts, min_len):
    def continued(*lines):
        (tmp_path / "prompts").write_text("".join(f"{line}\n" for line in lines))
        settings = f"--buffer-size 4 --batch-size 4 --beam 2 --max-len-b 12 --min-len {min_len}"
        interactive(data, run, "--input", str(tmp_path / "prompts"), *settings.split())
        found = hypotheses(capsys.readouterr().out)
        return [found[str(number)] for number in range(len(lines))]

    assert continued(*prompts) == [continued(prompt)[0] for prompt in prompts]


@pytest.mark.parametrize("mode", ["none", "complete"])
def test_a_block_that_fits_in_no_batch_is_named(data, run, mode):
    blocks = ("--eval-mode", "blocks", "--sample-break-mode", mode, "--tokens-per-sample", "16")
    with pytest.raises(
        UserError, match="dataset.max_tokens=10 .*item of 16 tokens fits in no batch"
    ):
        eval_lm(data, run, *blocks, "--max-tokens", "10")


@pytest.mark.parametrize("fault", ["a duplicate", "a blank line"])
def test_a_damaged_dictionary_is_named(data, run, tmp_path, fault):
    shutil.copytree(data, tmp_path / "data")
    path = tmp_path / "data" / "dict.txt"
    first = path.read_text().splitlines()[0]
    path.write_text(path.read_text() + (f"{first}\n" if fault == "a duplicate" else "\n"))
    with pytest.raises(UserError, match=rf"{path}, line \d+ (repeats the symbol|is blank)"):
        eval_lm(tmp_path / "data", run)


def test_generate_continues_lines(data, run, capsys):
    settings = "--eval-mode blocks --sample-break-mode eos --beam 2 --max-len-b 30"
    generate(data, run, *settings.split(), "--batch-size", "4")
    printed = capsys.readouterr().out
    targets = {m[1]: m[2] for m in re.finditer(r"^T-(\d+)\t(.*)$", printed, re.M)}
    found = hypotheses(printed)
    assert found.keys() == targets.keys()
    assert all(found[i].startswith(targets[i]) for i in targets)
    assert any(found[i] != targets[i] for i in targets)


def test_constraints_are_refused(data, run, tmp_path):
    (tmp_path / "prompts").write_text("alpha\tbeta\n")
    with pytest.raises(UserError, match="--constraints ordered is for translation"):
        interactive(data, run, "--input", str(tmp_path / "prompts"), "--constraints")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--eval-mode", "rows"], "task.eval_mode='rows' is unknown; choose one of stream, blocks"),
        (["--documents", "book"], "task.documents='book' is unknown"),
        (["--sample-break-mode", "line"], "task.sample_break_mode='line' is unknown"),
        (["--block-multiple-min", "3"], "blocks of 3 to 1 times 8 tokens"),
        (["--add-bos-token"], "task.add_bos_token=True is not supported"),
        (["--max-tokens", "7", "--batch-size", "1"], "the longest block has 8 tokens"),
        (
            [*STREAM, "--max-tokens", "23"],
            "a block of a row has up to 24 tokens, but at most 23 fit in a batch; raise",
        ),
        (["--max-tokens-valid", "15"], "a block of a row has up to 16 tokens, but at most 15"),
        (["--stream", "--batch-size", "5000"], "cannot be cut in 5000 rows"),
        (["--valid-subset", "dev"], "has no complete split 'dev'; it has test, train, valid"),
        (["--adaptive-cutoffs", "9,5"], "model.adaptive_cutoffs='9,5' must be rising"),
        (["--chunk-size", "0"], "model.chunk_size=0"),
    ],
)
def test_impossible_settings_are_named(data, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        train(data, tmp_path, *arguments)


def test_missing_folder_and_dictionary_are_named(data, tmp_path):
    with pytest.raises(UserError, match="the folder .*nowhere does not exist"):
        train(tmp_path / "nowhere", tmp_path / "run")
    (tmp_path / "bin").mkdir()
    with pytest.raises(UserError, match="has no dict.txt"):
        train(tmp_path / "bin", tmp_path / "run")


@pytest.mark.parametrize("symbols", ["fewer", "others"])
def test_other_vocabulary_than_the_checkpoint_is_refused(data, run, tmp_path, symbols):
    lines = (data / "dict.txt").read_text().splitlines()
    for path in data.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    lines = lines[:-1] if symbols == "fewer" else [*lines[:-1], "omega 1"]
    (tmp_path / "dict.txt").write_text("\n".join(lines) + "\n")
    count = 15 if symbols == "fewer" else 16
    differ = f"model.vocabulary: .* was trained with 16:.*, the data has {count}:.*--srcdict"
    with pytest.raises(UserError, match=differ):
        eval_lm(tmp_path, run)


def test_token_out_of_range_ends_in_a_message(data, tmp_path):
    """A dictionary that lost its last symbols, which the data has."""
    for path in data.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    lines = (data / "dict.txt").read_text().splitlines()
    (tmp_path / "dict.txt").write_text("\n".join(lines[:4]) + "\n")
    assert data_utils.load_indexed_dataset(str(tmp_path / "train")) is not None
    with pytest.raises(UserError, match="split 'train' .*token id .* is out of range.*8 symbols"):
        train(tmp_path, tmp_path / "run")
