"""fairseq's own commands, unchanged, on generated pairs: preprocess, train, generate, score."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fairseq import options
from fairseq_cli import generate as fairseq_generate
from fairseq_cli import interactive as fairseq_interactive
from fairseq_cli import preprocess as fairseq_preprocess
from fairseq_cli import score as fairseq_score
from fairseq_cli import train as fairseq_train

from megalodon_tasks.errors import UserError
from megalodon_tasks.recipes.translation import demo_numbers
from tests.recipes.lm_data import parsed, quietly

ROOT = Path(__file__).resolve().parents[2]
SIZES = """--model-dim 16 --num-layers 1 --z-dim 8 --value-dim 16 --ffn-hidden-dim 24 --cema-ndim 2
--norm-num-groups 4 --chunk-size 8"""
TRAIN = f"""--task translation --source-lang en --target-lang de --arch megalodon {SIZES}
--user-dir {ROOT / "megalodon_tasks"} --criterion label_smoothed_cross_entropy --label-smoothing 0.1
--cpu --num-workers 0 --required-batch-size-multiple 1 --optimizer adam --lr 0.01 --clip-norm 1.0
--lr-scheduler inverse_sqrt --warmup-updates 5 --max-update 10 --seed 3 --log-format none"""


def preprocess(folder, *arguments):
    """What fairseq-preprocess makes of 120 pairs."""
    raw = folder / "raw"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(demo_numbers.PAIRS, "train", 120)
        demo_numbers.main([str(raw)])
    for path in raw.glob("test.*"):
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:12]))
    words = ["--source-lang", "en", "--target-lang", "de", "--destdir", str(folder / "bin")]
    words += [f"--{split}pref={raw / split}" for split in ("train", "valid", "test")]
    parser = options.get_preprocessing_parser()
    quietly(lambda: fairseq_preprocess.main(parser.parse_args([*words, *arguments])))
    return folder / "bin"


def train(data, save_dir, *arguments):
    words = [str(data), *TRAIN.split(), "--max-tokens", "400", "--save-dir", str(save_dir)]
    words += arguments
    quietly(lambda: fairseq_train.main(parsed(options.get_training_parser(), words)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("translation")
    data = preprocess(folder, "--joined-dictionary")
    train(data, folder / "run", "--share-all-embeddings")
    return data, folder / "run" / "checkpoint_last.pt"


def generate(trained, *arguments):
    data, checkpoint = trained
    words = f"{data} --task translation --path {checkpoint} --gen-subset test --cpu --num-workers 0"
    words = [*words.split(), "--log-format", "none", "--max-len-b", "20", *arguments]
    quietly(lambda: fairseq_generate.main(parsed(options.get_generation_parser(), words)))


def lines_of(output, kind):
    """The lines of that kind by sentence, such as H for hypotheses."""
    found = re.findall(rf"^{kind}-(\d+)\t(.*)$", output, re.MULTILINE)
    return {int(number): line for number, line in found}


@pytest.mark.parametrize(
    "arguments",
    [
        "--beam 3 --lenpen 0.6 --batch-size 5",
        pytest.param("--beam 2 --max-tokens 100", marks=pytest.mark.slow),
        pytest.param(
            "--sampling --sampling-topk 3 --beam 1 --batch-size 12", marks=pytest.mark.slow
        ),
        "--beam 2 --print-alignment --batch-size 4",
    ],
)
def test_generate_translates_every_sentence(trained, capfd, arguments):
    generate(trained, *arguments.split())
    output = capfd.readouterr().out
    assert lines_of(output, "H").keys() == set(range(12))
    assert "Generate test with beam=" in output  # the BLEU score
    if "--print-alignment" in arguments:
        sources = lines_of(output, "S")
        for number, line in lines_of(output, "A").items():
            places = [int(pair.split("-")[0]) for pair in line.split()]
            assert all(0 <= place < len(sources[number].split()) for place in places)


def test_a_sentence_is_translated_alike_in_any_batch(trained, capfd):
    """fairseq pads sources on the left; scores agree to the digits that it prints."""
    hypotheses = []
    for size in ("1", "12"):
        generate(trained, "--beam", "3", "--batch-size", size, "--max-len-b", "8")
        hypotheses.append(lines_of(capfd.readouterr().out, "H"))
    for number, _line in hypotheses[0].items():
        (score, text), (other, same) = (
            h[number].split("\t") for h in (hypotheses[0], hypotheses[1])
        )
        assert text == same
        assert float(score) == pytest.approx(float(other), abs=1e-4)


def test_interactive_and_score(trained, tmp_path, capfd, monkeypatch):
    data, checkpoint = trained
    (tmp_path / "input").write_text("digits 4 2\nwords seven\n")
    words = f"{data} --task translation --path {checkpoint} --cpu --beam 2 --max-len-b 20"
    words = [*words.split(), "--input", str(tmp_path / "input"), "--buffer-size", "2"]
    parser = options.get_interactive_generation_parser()
    quietly(lambda: fairseq_interactive.main(parsed(parser, words)))
    assert lines_of(capfd.readouterr().out, "H").keys() == {0, 1}

    generate(trained, "--beam", "1")
    texts = lines_of(capfd.readouterr().out, "T")
    for name in ("sys", "ref"):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in texts.values()))
    monkeypatch.setattr(sys, "argv", ["score", "-s", f"{tmp_path}/sys", "-r", f"{tmp_path}/ref"])
    fairseq_score.cli_main()
    assert "BLEU4 = 100.00" in capfd.readouterr().out


@pytest.mark.slow
def test_separate_dictionaries_and_a_target_padded_on_the_left(tmp_path, capfd):
    data = preprocess(tmp_path)
    arguments = "--left-pad-target --share-decoder-input-output-embed --max-update 2"
    train(data, tmp_path / "run", *arguments.split())
    generate((data, tmp_path / "run" / "checkpoint_last.pt"), "--beam", "2")
    assert lines_of(capfd.readouterr().out, "H").keys() == set(range(12))


def test_data_of_another_dictionary_is_refused(trained, tmp_path):
    other = preprocess(tmp_path, "--joined-dictionary", "--nwordssrc", "20", "--nwordstgt", "20")
    with pytest.raises(UserError, match=r"source dictionary of the checkpoint has \d+ symbols"):
        generate((other, trained[1]))


def test_tasks_without_pairs_are_refused(trained, tmp_path):
    words = (
        f"{trained[0]} --task language_modeling --arch megalodon --criterion cross_entropy --cpu"
    )
    words = [
        *words.split(),
        "--save-dir",
        str(tmp_path),
        "--max-tokens",
        "100",
        "--optimizer",
        "adam",
    ]
    (trained[0] / "dict.txt").write_text((trained[0] / "dict.en.txt").read_text())
    with pytest.raises(UserError, match="LanguageModelingTask has no target sequence"):
        quietly(lambda: fairseq_train.main(parsed(options.get_training_parser(), words)))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_two_processes_equal_one_that_accumulates(trained, tmp_path):
    data, _ = trained
    common = [
        "--share-all-embeddings",
        "--max-update",
        "6",
        "--optimizer",
        "adamw_groups",
        "--batch-size",
        "4",
    ]
    common += ["--max-tokens", "4000"]
    train(data, tmp_path / "one", *common, "--update-freq", "2")
    words = [str(data), *TRAIN.split(), *common, "--save-dir", str(tmp_path / "two")]
    words += ["--distributed-init-method", f"tcp://127.0.0.1:{free_port()}"]
    words += [
        "--distributed-world-size",
        "2",
        "--distributed-no-spawn",
        "--ddp-backend",
        "legacy_ddp",
    ]
    words += ["--distributed-backend", "gloo"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    command = [sys.executable, "-m", "fairseq_cli.train", *words, "--distributed-rank"]
    running = [subprocess.Popen([*command, rank], env=environment, **pipes) for rank in "01"]
    for process in running:
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output[-3000:]
    one, two = (
        torch.load(tmp_path / name / "checkpoint_last.pt", weights_only=True)["model"]
        for name in ("one", "two")
    )
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_the_encoder_learns_sentence_prediction(tmp_path):
    """fairseq's stock task and criterion: whether a source is in words or in digits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(demo_numbers.PAIRS, "train", 200)
        demo_numbers.main([str(tmp_path / "raw")])
    for split in ("train", "valid"):
        lines = (tmp_path / "raw" / f"{split}.en").read_text().splitlines()
        (tmp_path / f"{split}.input0").write_text("".join(f"{x.split(' ', 1)[1]}\n" for x in lines))
        (tmp_path / f"{split}.label").write_text("".join(f"{x.split()[0]}\n" for x in lines))
    for name in ("input0", "label"):
        words = ["--only-source", "--destdir", str(tmp_path / "bin" / name)]
        words += [f"--{split}pref={tmp_path}/{split}.{name}" for split in ("train", "valid")]
        given = options.get_preprocessing_parser().parse_args(words)
        quietly(lambda given=given: fairseq_preprocess.main(given))
    words = f"""{tmp_path}/bin --task sentence_prediction --criterion sentence_prediction
        --num-classes 2 --arch megalodon_encoder {SIZES} --max-positions 200 --batch-size 20 --cpu
        --user-dir {ROOT / "megalodon_tasks"} --optimizer adam --lr 0.01 --max-epoch 3 --num-workers 0
        --save-dir {tmp_path}/run --log-format none --no-epoch-checkpoints
        --best-checkpoint-metric accuracy --maximize-best-checkpoint-metric"""
    quietly(lambda: fairseq_train.main(parsed(options.get_training_parser(), words.split())))
    best = torch.load(tmp_path / "run" / "checkpoint_best.pt", weights_only=True)
    assert best["extra_state"]["best"] > 95
