"""Tasks of lm-evaluation-harness on local files: equal to our own commands, whatever the batches."""

import json
import math
import re

import pytest
import torch
import yaml

from megalodon_tasks.cli.main import main
from megalodon_tasks.data.corpus import read_corpus
from megalodon_tasks.errors import UserError
from megalodon_tasks.evaluation import checkpoint as checkpoints
from tests.cli.language_models import LENGTHS, TEXT, write_checkpoint, write_corpus
from tests.recipes import lm_data

lm_eval = pytest.importorskip("lm_eval", reason="needs the extra eval: make test-slow installs it")
pytestmark = pytest.mark.slow

import datasets  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from megalodon_tasks.cli.lm_eval import TASKS  # noqa: E402
from megalodon_tasks.evaluation.harness_model import MegalodonLM  # noqa: E402

QUIET = {"disable_tqdm": True}


@pytest.fixture(autouse=True)
def no_downloads(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def checkpoint(data):
    write_checkpoint(data.parent / "checkpoint.pt", data)
    return data.parent / "checkpoint.pt"


def requests(kind, arguments):
    return [Instance(kind, {}, tuple(each), 0) for each in arguments]


def write_task(folder, rows, **settings):
    """A task of the harness whose documents are ``rows``."""
    name = settings["task"]
    (folder / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {"data_files": {"test": str(folder / f"{name}.json")}}
    task = {"dataset_path": "json", "dataset_kwargs": files, "test_split": "test"} | settings
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))


def evaluate(checkpoint, tasks, folder, **settings):
    arguments = {"checkpoint": str(checkpoint), "device": "cpu"} | settings
    manager = TaskManager(include_path=[str(TASKS), str(folder)], include_defaults=False)
    found = lm_eval.simple_evaluate(
        "megalodon", arguments, tasks, task_manager=manager, bootstrap_iters=0
    )
    return found["results"], found["samples"]


def write_forms(folder, data):
    """The same model as a checkpoint, a release and a folder of Hugging Face: form -> arguments."""
    model = str(folder / "checkpoint.pt")
    main(["convert", "to-hf", model, str(folder / "hf"), "--data", str(data)])
    for name in ("release", "m.safetensors"):
        main(["convert", "to-released", model, str(folder / name)])
    return {
        "fairseq": {"checkpoint": model},
        "hf": {"checkpoint": str(folder / "hf")},
        "release": {"checkpoint": str(folder / "release"), "data": str(data)},
        "safetensors": {"checkpoint": str(folder / "m.safetensors"), "data": str(data)},
    }


def corpus_of(kind, folder):
    """Data and a checkpoint of a model of bytes, pieces or words."""
    if kind == "words":
        data, symbols = lm_data.preprocess(folder), 16
    else:
        data = write_corpus(folder, "--tokens", kind, "--pieces", "280")
        symbols = {"bytes": 260, "sentencepiece": 384}[kind]
    write_checkpoint(folder / "checkpoint.pt", data, symbols)
    return data


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece", "words"])
def test_every_form_and_tokenizer(kind, tmp_path):
    data = corpus_of(kind, tmp_path)
    pairs = [("alpha beta", " gamma"), ("", "the hill"), ("alpha beta", " the delta alpha")]
    contexts = [("alpha the", {"max_gen_toks": 9}), ("", {"max_gen_toks": 5, "until": "\n"})]
    found = []
    for arguments in write_forms(tmp_path, data).values():
        model = MegalodonLM(**arguments, device="cpu", piece=5)
        scores = model.loglikelihood(requests("loglikelihood", pairs), **QUIET)
        texts = model.generate_until(requests("generate_until", contexts), **QUIET)
        found.append((texts, *zip(*scores, strict=True)))
    for texts, log_p, greedy in found:  # products of matrices round as the tensors lie in memory
        assert (texts, greedy) == (found[0][0], found[0][2])
        assert log_p == pytest.approx(found[0][1], rel=1e-6)
    assert all(math.isfinite(log_p) and log_p < 0 for log_p in found[0][1])


def test_results_do_not_depend_on_batch_or_piece(checkpoint):
    shared = TEXT[:200]
    pairs = [(shared, " yes"), (shared, " no, not at all"), ("a", "b"), ("", TEXT[:90])]
    pairs += [(shared + end, "x") for end in "abc"] + [(TEXT[:n], TEXT[n : n + 9]) for n in (3, 4)]
    contexts = [
        (shared + end, {"max_gen_toks": most, "until": until})
        for end, most, until in [("a", 12, []), ("b", 30, ["o"]), ("", 7, ["\x05"]), ("", 9, ["?"])]
    ]
    drawn = [(shared, {"do_sample": True, "temperature": 0.7, "top_k": 20, "max_gen_toks": 8})] * 3
    texts, rolled = [(TEXT[:n],) for n in (90, 1, 33)], []
    found = []
    for batch_size, piece in ((1, 2048), (3, 11), (16, 64)):
        model = MegalodonLM(str(checkpoint), batch_size=batch_size, piece=piece, device="cpu")
        found.append(model.loglikelihood(requests("loglikelihood", pairs), **QUIET))
        rolled.append(
            model.loglikelihood_rolling(requests("loglikelihood_rolling", texts), **QUIET)
        )
        found[-1].append(
            model.generate_until(requests("generate_until", contexts + drawn), **QUIET)
        )
    for other, sums in zip(found[1:], rolled[1:], strict=True):
        assert other[-1] == found[0][-1]
        assert len(set(other[-1][-3:])) > 1  # equal contexts are drawn from independently
        for (log_p, greedy), (expected, same) in zip(other[:-1], found[0][:-1], strict=True):
            assert log_p == pytest.approx(expected, abs=1e-4)
            assert greedy == same
        assert sums == pytest.approx(rolled[0], abs=1e-3)


def test_the_sum_over_documents_equals_evaluate_lm(checkpoint, data, tmp_path):
    texts = [TEXT[n : n + length] for n, length in enumerate(LENGTHS["test"])]
    settings = {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
    }
    metrics = [{"metric": "bits_per_byte"}]
    write_task(tmp_path, [{"text": t} for t in texts], task="roll", metric_list=metrics, **settings)
    results, samples = evaluate(checkpoint, ["roll"], tmp_path, batch_size=2)
    results_file = tmp_path / "results.jsonl"
    main(["evaluate-lm", "--cpu", str(checkpoint), "--results", str(results_file)])
    total = json.loads(results_file.read_text())["nll"]
    # The harness does not count the token that ends a document.
    model = checkpoints.load(checkpoint, device=torch.device("cpu")).language_model
    split = read_corpus(data).split("test")
    for start, stop in zip(split.offsets, split.offsets[1:], strict=False):
        tokens = torch.from_numpy(split.tokens(int(start), int(stop)))
        with torch.no_grad():
            before = torch.cat((tokens.new_tensor([2]), tokens[:-1]))
            scores = model(before[None])[0][0, -1].log_softmax(-1)
        total += float(scores[2])
    logged = -sum(sample["filtered_resps"][0] for sample in samples["roll"])
    assert logged == pytest.approx(total, rel=1e-6, abs=1e-4 * split.info.tokens)
    bits = total / math.log(2) / sum(len(text.encode()) for text in texts)
    assert results["roll"]["bits_per_byte,none"] == pytest.approx(bits, abs=1e-4)


def test_greedy_text_equals_sample(checkpoint, tmp_path, capfd):
    prompts = ["Über the hill", "the", TEXT]
    settings = {"output_type": "generate_until", "doc_to_text": "{{text}}", "doc_to_target": "x"}
    settings["generation_kwargs"] = {"until": [], "max_gen_toks": 40, "do_sample": False}
    write_task(tmp_path, [{"text": text} for text in prompts], task="greedy", **settings)
    _, samples = evaluate(checkpoint, ["greedy"], tmp_path, batch_size=3)
    for prompt, sample in zip(prompts, samples["greedy"], strict=True):
        capfd.readouterr()
        main(["sample", str(checkpoint), "--cpu", "--prompt", prompt, "--tokens", "40"]
             + ["--temperature", "0"])  # fmt: skip
        assert capfd.readouterr().out == f"{prompt}{sample['resps'][0][0]}\n"


def test_choices_and_stops(checkpoint, tmp_path):
    rows = [
        {"q": "the horse", "c": ["ran on", "x"], "a": 0},
        {"q": "far", "c": ["b", "away"], "a": 1},
    ]
    choice = {"output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_choice": "{{c}}"}
    write_task(tmp_path, rows, task="choice", doc_to_target="{{a}}", **choice)
    results, samples = evaluate(checkpoint, ["choice"], tmp_path, batch_size=4)
    model = MegalodonLM(str(checkpoint), device="cpu")
    right = 0
    for row, sample in zip(rows, samples["choice"], strict=True):
        pairs = [(row["q"], f" {choice}") for choice in row["c"]]
        scores = [s for s, _ in model.loglikelihood(requests("loglikelihood", pairs), **QUIET)]
        assert [s for ((s, _),) in sample["resps"]] == pytest.approx(scores, abs=1e-4)
        right += scores.index(max(scores)) == row["a"]
    assert results["choice"]["acc,none"] == right / 2
    (whole,) = model.generate_until(requests("generate_until", [("the", {})]), **QUIET)
    for stop in (whole[3:5], whole[-1]):
        settings = {"until": ["never there", stop, ""]}
        (cut,) = model.generate_until(requests("generate_until", [("the", settings)]), **QUIET)
        assert cut == whole[: whole.index(stop)]


def scrolls_row(number, question, text, output):
    return {"id": number, "pid": f"{number}_0", "input": f"{question}\n\n{text}", "output": output}


def test_table2_prompts_and_measures(checkpoint, tmp_path):
    from megalodon_tasks.evaluation.harness_tasks import scrolls

    rows = [scrolls_row("1", "Who?", "The horse\n\nran.", "the horse")]
    rows += [
        scrolls_row("2", "Where to?", "It ran away.", answer) for answer in ("Away", "far off")
    ]
    for split in ("train", "validation"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{split}.jsonl").write_text(text)
    files = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "validation")}
    for name, metric in {"qasper": "f1", "qmsum": "geometric_rouge"}.items():
        task = {"include": str(TASKS / f"scrolls_{name}_paper.yaml"), "task": f"{name}_local"}
        task |= {"dataset_kwargs": {"data_files": files}, "num_fewshot": 1}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(task))
        results, samples = evaluate(checkpoint, [f"{name}_local"], tmp_path, batch_size=2)
        prompts = [sample["arguments"][0][0] for sample in samples[f"{name}_local"]]
        shot = "It ran away. Q: Where to? A: Away\n\n"
        assert prompts[0] == f"{shot}The horse\n\nran. Q: Who? A:"
        assert len(prompts) == 2
        assert 0 <= results[f"{name}_local"][f"{metric},none"] <= 100
    document = {"answers": ["Away", "far off, the hill"]}
    assert scrolls.best_f1(document, ["A far hill."]) == {"f1": pytest.approx(100 * 4 / 5)}
    assert scrolls.best_f1(document, ["x"]) == {"f1": 0}
    scores = scrolls.rouge(document, ["far off the hills"])["geometric_rouge"]
    assert scores == pytest.approx((100, 100, 100))
    assert scrolls.geometric_mean([(10, 20, 30), (30, 20, 10)]) == pytest.approx(20)
    assert scrolls.geometric_mean([(8, 27, 64)]) == pytest.approx(24)


# Where the harness has the tasks of the groups; its whole index takes some seconds.
HARNESS = (
    "mmlu/default", "super_glue", "hellaswag", "piqa", "siqa", "winogrande", "arc", "nq_open",
    "triviaqa", "ruler", "babilong",
)  # fmt: skip


@pytest.mark.parametrize("group", ["paper-table1", "paper-table2", "long-context"])
def test_groups_name_tasks_that_there_are(group):
    from lm_eval import tasks

    folders = [f"{tasks.__path__[0]}/{name}" for name in HARNESS]
    manager = TaskManager(include_path=[str(TASKS), *folders], include_defaults=False)
    members = manager.task_index[group].cfg["task"]
    names = [member if isinstance(member, str) else member["task"] for member in members]
    assert set(names) <= set(manager.all_tasks)
    assert len(names) == {"paper-table1": 10, "paper-table2": 3, "long-context": 2}[group]


@pytest.fixture
def few_tasks(tmp_path, monkeypatch):
    """The command with a folder of one task in place of the harness's thousands."""
    monkeypatch.setattr("lm_eval.tasks.manager.__file__", str(tmp_path / "nothing" / "manager.py"))
    settings = {"output_type": "loglikelihood", "doc_to_text": "{{t}}", "doc_to_target": " x"}
    write_task(tmp_path, [{"t": "the hill"}, {"t": "the"}], task="tiny_words", **settings)
    return tmp_path


def command(checkpoint, folder, *more):
    base = ["lm-eval", str(checkpoint), "--include_path", str(folder), "--device", "cpu"]
    return main([*base, *more])


def test_the_command_prints_the_harness_table(checkpoint, few_tasks, capfd):
    assert command(checkpoint, few_tasks, "--tasks", "tiny_words", "--output_path",
                   str(few_tasks / "out")) == 0  # fmt: skip
    assert re.search(r"(?s)tiny_words.*perplexity", capfd.readouterr().out)
    (written,) = (few_tasks / "out").rglob("results_*.json")
    assert "tiny_words" in json.loads(written.read_text())["results"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--tasks", "tiny_word,paper-table9"],
            "tiny_word: there is no such task; near: tiny_words",
        ),
        (["--tasks", "tiny_words,paper-table9"], "near: paper-table2, paper-table1"),
        (["--tasks", "tiny_words", "--model", "hf"], "--model hf: the model is the checkpoint"),
        (["--tasks", "tiny_words", "--apply_chat_template"], "has no template for conversations"),
        (["--tasks", "tiny_words", "--batch_size", "auto"], "batch_size='auto' must be"),
        (["--tasks", "tiny_words", "--chunk-size", "7", "--data", "nowhere"], "nowhere"),
    ],
)
def test_bad_commands_are_named(checkpoint, few_tasks, more, message):
    with pytest.raises(UserError, match=re.escape(message)):
        command(checkpoint, few_tasks, *more)


def test_bad_models_are_named(checkpoint, few_tasks, data):
    release, foreign = few_tasks / "release", few_tasks / "foreign"
    main(["convert", "to-released", str(checkpoint), str(release)])
    foreign.mkdir()
    (foreign / "config.json").write_text('{"model_type": "llama"}')
    other = lm_data.preprocess(few_tasks / "w")
    cases = {
        "a release, which has no tokenizer": [release],
        "has 260 symbols, its tokenizer 16": [release, "--data", str(other)],
        "another architecture: config.json has model_type='llama'": [foreign],
        "there is no such checkpoint or folder": [few_tasks / "nowhere.pt"],
    }
    for message, (source, *more) in cases.items():
        with pytest.raises(UserError, match=message):
            command(source, few_tasks, "--tasks", "tiny_words", *more)


def test_bad_requests_are_named(checkpoint):
    model = MegalodonLM(str(checkpoint), device="cpu")
    with pytest.raises(ValueError, match="num_beams=3 is not supported; there is do_sample"):
        model.generate_until(requests("generate_until", [("a", {"num_beams": 3})]), **QUIET)
    with pytest.raises(ValueError, match="the continuation '' of 'a' has no tokens of its own"):
        model.loglikelihood(requests("loglikelihood", [("a", "")]), **QUIET)


def test_words_outside_the_vocabulary_are_reported_once(tmp_path, caplog):
    corpus_of("words", tmp_path)
    model = MegalodonLM(str(tmp_path / "checkpoint.pt"), device="cpu")
    model.loglikelihood(requests("loglikelihood", [("alpha nowhere", " beta x")] * 2), **QUIET)
    warned = [r.getMessage() for r in caplog.records if "not in the vocabulary" in r.getMessage()]
    assert len(warned) == 1


MEASURED = """
import datasets
from lm_eval.tasks.ruler.common_utils import get_tokenizer, resolve_tokenizer_name

def build(**settings):
    tokens = get_tokenizer(resolve_tokenizer_name(settings))(TEXT).input_ids
    return {"test": datasets.Dataset.from_list([{"t": str(len(tokens)), "most": settings["most"]}])}
"""


def test_tasks_that_measure_texts_find_the_tokenizer_of_the_model(checkpoint, few_tasks):
    """As RULER's, whose own data need a download."""
    (few_tasks / "measured.py").write_text(f"TEXT = {TEXT!r}\n{MEASURED}")
    task = "task: measured\ncustom_dataset: !function measured.build\noutput_type: loglikelihood\n"
    task += (
        'dataset_path: ""\ntest_split: test\ndoc_to_text: "{{t}} {{most}}"\ndoc_to_target: " x"\n'
    )
    (few_tasks / "measured.yaml").write_text(task)
    more = ["--output_path", str(few_tasks / "out"), "--log_samples", "--metadata", '{"most": 7}']
    assert command(checkpoint, few_tasks, "--tasks", "measured", *more) == 0
    (samples,) = (few_tasks / "out").rglob("samples_*.jsonl")
    document = json.loads(samples.read_text().splitlines()[0])["doc"]
    assert document == {"t": str(1 + len(TEXT.encode())), "most": 7}


def test_a_task_that_needs_another_package_says_so(checkpoint, few_tasks):
    (few_tasks / "needing.py").write_text("import no_such_package\n\ndef build(**settings): ...\n")
    task = "task: needing\ncustom_dataset: !function needing.build\noutput_type: loglikelihood\n"
    (few_tasks / "needing.yaml").write_text(task)
    with pytest.raises(UserError, match="a task of needing needs another package: No module named"):
        command(checkpoint, few_tasks, "--tasks", "needing")
