"""Instruction tuning: what is prepared, what is learned, what is kept apart, where it starts from."""

import json
import math
import re

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils, options, tasks

from megalodon_tasks.data.conversations import CHATML
from megalodon_tasks.data.corpus import read_corpus
from megalodon_tasks.data.token_stream import open_stream
from megalodon_tasks.errors import UserError
from megalodon_tasks.recipes.lm import demo_instructions, prepare_instruct
from megalodon_tasks.recipes.lm.task import load_dictionary
from tests.cli.language_models import write_checkpoint, write_corpus
from tests.recipes.conversation_files import (
    conversation,
    prepare_conversations,
    write_conversations,
)
from tests.recipes.lm_data import TRAIN, parsed, preprocess, train

TUNED = ("--documents", "corpus", "--sample-break-mode", "documents", "--answers-only")
TUNED = (*TUNED, "--tokens-per-sample", "256", "--best-checkpoint-metric", "loss")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare_conversations(tmp_path_factory.mktemp("conversations"))


def text_of(tokens):
    return "".join("|" if token < 4 else chr(token - 4) for token in tokens.tolist())


def batches_of(data, *arguments):
    """All training batches of an epoch, as a run of such arguments makes them."""
    words = [str(data), *TRAIN.split(), *TUNED, *arguments]
    cfg = parsed(options.get_training_parser(), words)
    task = tasks.setup_task(cfg.task)
    task.load_dataset("train")
    found = task.get_batch_iterator(task.dataset("train"), max_sentences=2)
    return [*found.next_epoch_itr(shuffle=False)]


def test_only_answers_are_targets_and_count(data):
    dictionary = load_dictionary(str(data))
    stream = open_stream(data, "train", dictionary, "corpus", answers_only=True)
    _, target = stream.source_and_target(0, len(stream))
    source = read_corpus(data).folder.parent / "source" / "train.jsonl"
    messages = [m for line in source.read_text().splitlines() for m in json.loads(line)["messages"]]
    expected = "".join(f"{m['content']}|" for m in messages if m["role"] == "assistant")
    assert text_of(target[target != 1]) == expected
    for start in (0, 5, 100):
        assert torch.equal(
            stream.source_and_target(start, start + 60)[1], target[start : start + 60]
        )
    assert sum(batch["ntokens"] for batch in batches_of(data)) == len(expected)


@pytest.mark.parametrize("length", ["256", "150"])
def test_blocks_hold_whole_conversations_kept_apart(data, length):
    rows = []
    for batch in batches_of(data, "--tokens-per-sample", length):
        inputs = batch["net_input"]
        lengths, starts = inputs["src_lengths"], inputs["document_starts"]
        assert starts[:, 0].all()
        rows += [row[:n] for row, n in zip(inputs["src_tokens"], lengths, strict=True)]
        heads = inputs["src_tokens"][starts]
        assert (heads == 2).all()
        assert all(n <= int(length) for n in lengths)
    assert sum(map(len, rows)) == read_corpus(data).info("train").tokens
    assert len(rows) < 12


def test_a_packed_conversation_is_learned_as_it_is_alone(data, tmp_path):
    model = write_checkpoint(tmp_path / "checkpoint.pt", data).double()
    split = read_corpus(data).split("train")
    alone = 0.0
    for start, stop in zip(split.offsets, split.offsets[1:], strict=False):
        items = np.searchsorted(split.sizes.cumsum(), np.arange(start, stop), side="right")
        tokens = torch.from_numpy(np.concatenate(([2], split.tokens(start, stop))))[None]
        nll, _ = model.nll(tokens[:, :-1], tokens[:, 1:])
        alone += nll[0, torch.from_numpy(items % 2 == 1)].sum().item()
    packed = 0.0
    for batch in batches_of(data):
        inputs, target = batch["net_input"], batch["target"]
        padding = torch.arange(target.shape[1]) >= inputs["src_lengths"][:, None]
        features, _ = model.features(inputs["src_tokens"], None, padding, inputs["document_starts"])
        scores = model.output.scores(features)
        packed += torch.nn.functional.cross_entropy(
            scores.flatten(0, 1), target.flatten(), ignore_index=1, reduction="sum"
        ).item()
    assert packed == pytest.approx(alone, rel=1e-9)


@pytest.mark.parametrize("more", [(), ("--stream", "--block-multiple-max", "2")], ids=str)
def test_tuning_starts_from_a_checkpoint_and_is_validated_on_answers(data, tmp_path, more):
    train(data, tmp_path / "base", *TUNED, "--max-update", "1")
    base = tmp_path / "base" / "checkpoint_last.pt"
    start = ("--finetune-from-model", str(base), "--lr", "1e-9", "--max-update", "2")
    train(data, tmp_path / "tuned", *TUNED, *start, *more)
    last = tmp_path / "tuned" / "checkpoint_last.pt"
    states = [checkpoint_utils.load_checkpoint_to_cpu(str(path)) for path in (base, last)]
    for name, tensor in states[0]["model"].items():
        torch.testing.assert_close(tensor, states[1]["model"][name])
    assert math.isfinite(states[1]["extra_state"]["val_loss"])


def test_a_checkpoint_of_another_vocabulary_is_refused(data, tmp_path):
    (tmp_path / "words").mkdir()
    other = write_corpus(tmp_path / "pieces", "--tokens", "sentencepiece", "--pieces", "280")
    train(other, tmp_path / "base", "--max-update", "1")
    base = str(tmp_path / "base" / "checkpoint_last.pt")
    with pytest.raises(
        UserError, match=f"{base}: the checkpoint was trained with the vocabulary 384:"
    ):
        train(data, tmp_path / "tuned", *TUNED, "--finetune-from-model", base)
    again = prepare_conversations(tmp_path / "again", "--vocabulary", str(other))
    train(again, tmp_path / "tuned", *TUNED, "--finetune-from-model", base, "--max-update", "1")


@pytest.mark.parametrize("kind", ["folder beside", "model beside", "model"])
def test_the_vocabulary_of_the_checkpoint_is_taken(tmp_path, kind):
    other = write_corpus(tmp_path / "pieces", "--tokens", "sentencepiece", "--pieces", "280")
    source, more = write_conversations(tmp_path / "source"), []
    if kind == "folder beside":
        (source / "vocabulary").symlink_to(other)
    elif kind == "model beside":
        (source / "sentencepiece.model").symlink_to(other / "sentencepiece.model")
    else:
        more = ["--vocabulary", str(other / "sentencepiece.model")]
    out = prepare_instruct.main([str(source), str(tmp_path / "out"), *more])
    assert load_dictionary(str(out)).symbols == load_dictionary(str(other)).symbols


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "is not JSON"),
        (json.dumps(conversation("why")), "ends with user, without an answer"),
        (json.dumps(conversation("why", "")), r"message 2 \(assistant\) has an empty text"),
    ],
)
def test_a_line_that_is_no_conversation_is_named(tmp_path, capsys, line, message):
    source = write_conversations(tmp_path / "source")
    with open(source / "valid.jsonl", "a") as stream:
        stream.write(line + "\n")
    with pytest.raises(SystemExit, match="2"):
        prepare_instruct.main([str(source), str(tmp_path / "out")])
    assert f"{source / 'valid.jsonl'}, line 5: the conversation " in (
        said := capsys.readouterr().err
    )
    assert re.search(message, said)
    assert not (tmp_path / "out" / "manifest.json").exists()


def prepare_words(tmp_path, source, template):
    """Prepare with a vocabulary of ten words and a template."""
    (tmp_path / "template.json").write_text(json.dumps(template))
    words = ["--vocabulary", str(preprocess(tmp_path / "w"))]
    words += ["--template", str(tmp_path / "template.json")]
    return prepare_instruct.main([str(source), str(tmp_path / "out"), *words])


def test_a_vocabulary_without_the_symbols_of_the_template_is_refused(tmp_path, capsys):
    source = write_conversations(tmp_path / "source")
    template = dict.fromkeys(CHATML, "{content}</s>") | {"user": "<|user|>{content}"}
    with pytest.raises(SystemExit, match="2"):
        prepare_words(tmp_path, source, template)
    message = f"{tmp_path / 'template.json'}: the text of user has the symbol <|user|>, which the"
    assert message in capsys.readouterr().err


def test_a_line_break_among_words_is_named_with_its_line(tmp_path, capsys):
    source = write_conversations(tmp_path / "source")
    lines = [json.dumps(conversation("alpha", "beta")), json.dumps(conversation("beta", "a\nb"))]
    (source / "train.jsonl").write_text("\n".join(lines))
    with pytest.raises(SystemExit, match="2"):
        prepare_words(tmp_path, source, dict.fromkeys(CHATML, "{content}</s>"))
    assert (
        f"{source / 'train.jsonl'}, line 2: the text of assistant, 'a\\nb', has a line break"
        in (capsys.readouterr().err)
    )


def test_missing_files_and_another_template_are_refused(tmp_path, capsys):
    source = write_conversations(tmp_path / "source")
    out = prepare_instruct.main([str(source), str(tmp_path / "out")])
    (tmp_path / "t.json").write_text(json.dumps(CHATML | {"user": "Q: {content}\n"}))
    words = [str(source), str(out), "--template", str(tmp_path / "t.json")]
    with pytest.raises(SystemExit, match="2"):
        prepare_instruct.main(words)
    assert "replace it with --replace" in capsys.readouterr().err
    prepare_instruct.main([*words, "--replace"])
    (source / "test.jsonl").unlink()
    with pytest.raises(SystemExit, match="2"):
        prepare_instruct.main([str(source), str(tmp_path / "other")])
    assert f"{source} has no test.jsonl; needed are train.jsonl" in capsys.readouterr().err


def test_wrong_settings_are_named(data, tmp_path):
    plain = write_corpus(tmp_path / "c")
    cases = {
        ("--documents", "none"): "sample_break_mode=documents needs task.documents",
        (
            "--tokens-per-sample",
            "64",
        ): "a document of 96 tokens is longer than a block of 64; raise",
    }
    for arguments, message in cases.items():
        with pytest.raises(UserError, match=message):
            batches_of(data, *arguments)
    with pytest.raises(UserError, match="/c/data does not hold conversations"):
        batches_of(plain)


def test_no_word_of_the_demo_is_in_two_splits(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_instructions, "CONVERSATIONS", {"train": 900, "valid": 90, "test": 90})
    demo_instructions.main([str(tmp_path)])
    found = {}
    for split in ("train", "valid", "test"):
        lines = (tmp_path / f"{split}.jsonl").read_text().splitlines()
        said = [m["content"] for line in lines for m in json.loads(line)["messages"]]
        found[split] = {question.split()[1] for question in said[::2]}
        assert ("reverse" in said[0]) <= (said[1] == said[0].split()[1][::-1])
    assert not found["train"] & found["test"]
    assert not found["train"] & found["valid"]
