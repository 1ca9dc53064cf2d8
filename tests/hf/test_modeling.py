"""The form of Hugging Face: loaded by transformers, equal to ours, with cache, beams and padding."""

import itertools

import pytest
import torch

from megalodon_tasks.cli.main import main
from megalodon_tasks.data.tokenizers import ByteTokenizer
from megalodon_tasks.evaluation import checkpoint as checkpoints
from megalodon_tasks.evaluation.sampling import generate, text_tokens
from tests.cli.language_models import write_checkpoint, write_corpus

transformers = pytest.importorskip(
    "transformers", reason="needs the extra hf: make test-slow installs it"
)
pytestmark = pytest.mark.slow

PROMPTS = ["Über the hill and far away", "the", "", "ran on. The horse ran"]
NEW = 40


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module", params=[{}, {"share_emb": True, "chunk_size": None}])
def ours(request, data):
    """A model, and a folder of Hugging Face that was converted from its checkpoint."""
    name = "tied" if request.param else "plain"
    write_checkpoint(data.parent / f"{name}.pt", data, **request.param)
    arguments = ["convert", "to-hf", str(data.parent / f"{name}.pt"), str(data.parent / name)]
    assert main(arguments) == 0
    trained = checkpoints.load(data.parent / f"{name}.pt", device=torch.device("cpu"))
    return trained.language_model, data.parent / name


@pytest.fixture(scope="module")
def theirs(ours):
    import megalodon_tasks.hf  # noqa: F401

    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(ours[1], trust_remote_code=False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(ours[1], trust_remote_code=False)
    return model, tokenizer


def tokens_of(text):
    return torch.tensor([2, *ByteTokenizer().encode(text).tolist()])


@pytest.mark.parametrize("side", ["left", "right"])
def test_scores_of_padded_rows_equal_those_of_single_rows(ours, theirs, side):
    model, tokenizer = theirs
    batch = tokenizer(PROMPTS, padding=True, return_tensors="pt", padding_side=side)
    with torch.no_grad():
        logits = model(**batch).logits
        without_cache = model(**batch, use_cache=False).logits
        for row, text in enumerate(PROMPTS):
            expected, _ = ours[0](tokens_of(text)[None])
            real = batch["attention_mask"][row].bool()
            for found in (logits, without_cache):
                torch.testing.assert_close(found[row][real], expected[0], rtol=1e-4, atol=1e-4)


def test_greedy_text_equals_ours(ours, theirs):
    model, tokenizer = theirs
    batch = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    found = model.generate(**batch, max_new_tokens=NEW, do_sample=False)[:, -NEW:]
    allowed = text_tokens(ByteTokenizer(), 260)
    for row, text in zip(found.tolist(), PROMPTS, strict=True):
        tokens = generate(ours[0], tokens_of(text), torch.argmax, piece=3, allowed=allowed)
        expected = list(itertools.islice(tokens, NEW))
        end = expected.index(2) + 1 if 2 in expected else NEW
        assert row[:end] == expected[:end]


def test_steps_of_any_length_with_a_cache_equal_one_pass(theirs):
    model, tokenizer = theirs
    batch = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    tokens, mask = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        whole, cache, start = model(tokens, mask).logits, None, 0
        for length in (3, 1, 1, 7, 1, tokens.shape[1] - 13):
            stop = start + length
            part = model(tokens[:, start:stop], mask[:, :stop], cache=cache)
            cache = part.cache
            real = mask[:, start:stop].bool()
            expected = whole[:, start:stop][real]
            torch.testing.assert_close(part.logits[real], expected, rtol=1e-4, atol=1e-4)
            start = stop
    assert cache.get_seq_length() == tokens.shape[1]


def test_beam_search_equals_one_that_recomputes_all_tokens(theirs):
    model, tokenizer = theirs
    batch = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    settings = {"max_new_tokens": 20, "do_sample": False, "num_beams": 3, "output_scores": True}
    settings |= {"return_dict_in_generate": True, "num_return_sequences": 2}
    found = model.generate(**batch, **settings)
    expected = model.generate(**batch, **settings, use_cache=False)
    assert found.sequences.equal(expected.sequences)
    torch.testing.assert_close(found.sequences_scores, expected.sequences_scores)


def test_loss_and_gradients_equal_ours(ours, theirs):
    tokens = tokens_of(PROMPTS[0])[None]
    loss = theirs[0](tokens, labels=tokens).loss
    nll, _ = ours[0].nll(tokens[:, :-1], tokens[:, 1:])
    torch.testing.assert_close(loss, nll.mean())
    found = torch.autograd.grad(loss, theirs[0].lm.embedding.weight)
    expected = torch.autograd.grad(nll.mean(), ours[0].embedding.weight)
    torch.testing.assert_close(found, expected)


def test_back_exactly_also_after_transformers_saved_it(ours, theirs, data, tmp_path):
    theirs[0].save_pretrained(tmp_path / "saved")
    theirs[1].save_pretrained(tmp_path / "saved")
    for source in (ours[1], tmp_path / "saved"):
        target = tmp_path / f"{source.name}.pt"
        assert main(["convert", "from-hf", str(source), str(target), "--data", str(data)]) == 0
        back = checkpoints.load(target, device=torch.device("cpu")).language_model
        assert back.config == ours[0].config
        assert (back.scale_emb, back.share_emb) == (ours[0].scale_emb, ours[0].share_emb)
        weights = ours[0].state_dict()
        assert back.state_dict().keys() == weights.keys()
        assert all(torch.equal(back.state_dict()[name], weights[name]) for name in weights)


def test_the_tokenizer_writes_and_reads_text(theirs):
    tokenizer = theirs[1]
    for text in ["Über </s> the <pad> hill\n", ""]:
        tokens = tokenizer(text)["input_ids"]
        assert tokens == tokens_of(text).tolist()
        assert tokenizer.decode(tokens, skip_special_tokens=True) == text
