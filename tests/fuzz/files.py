"""Commands of which one file is wrong: everything that they are given to read."""

import functools
import itertools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from megalodon_tasks.cli.main import main
from megalodon_tasks.runs.record import append
from tests.cli.language_models import write_checkpoint, write_corpus, write_text
from tests.fuzz.damage import DAMAGES
from tests.fuzz.outcomes import Case
from tests.fuzz.runs import DATA, ROOT, RUNS, Run, start
from tests.recipes.conversation_files import write_conversations
from tests.recipes.image_files import write_tree
from tests.recipes.speech_files import write_release as write_speech
from tests.recipes.test_image import write_release as write_cifar
from tests.recipes.test_listops import write_files as write_listops
from tests.recipes.test_lm_prepared_before import wikitext
from tests.recipes.test_pathfinder_preparation import write_images as write_pathfinder
from tests.recipes.test_retrieval import write_pairs as write_papers
from tests.recipes.test_text import write_reviews
from tests.recipes.test_translation_recipe import OPTIONS as PAIR_OPTIONS
from tests.runs.records import result
from tests.runs.records import start as start_line

CPU, DATA_HERE = "--cpu", ("--data", "data")
# Without a manifest, data is that of fairseq-preprocess; without a checkpoint, a training begins.
MAY_BE_MISSING = ("data/manifest.json", "checkpoint_last.pt")


@dataclass(frozen=True)
class Bench:
    """Commands that run in a copy of a folder.

    write: fills the folder.  commands: what is run, each with the files that it reads.  tolerant:
    files that may be damaged, because they are made again or because the rest is used.
    """

    write: Callable[[Path], object]
    commands: dict[tuple[str, ...], tuple[str, ...]]
    tolerant: tuple[str, ...] = ()


def run_of(recipe: str) -> Run:
    """Return the small run of a recipe."""
    return next(run for run in RUNS if run.recipe == recipe)


def _trained(folder: Path, recipe: str) -> None:
    """Put prepared data and a checkpoint of one update into ``folder``."""
    run = run_of(recipe)
    shutil.copytree(DATA[run.data](folder / "made"), folder / "data")
    shutil.rmtree(folder / "made")
    words = ["checkpoint.no_save=false", "checkpoint.no_epoch_checkpoints=true"]
    start(run.compose(folder, folder / "data"), words)
    append(folder / "results.jsonl", result())


def write_classifier(folder: Path) -> None:
    """A classifier of tokens."""
    _trained(folder, "lra/listops_demo")


def write_translator(folder: Path) -> None:
    """An encoder-decoder."""
    _trained(folder, "translation/wmt16_en_de_demo")


def write_language_model(folder: Path) -> None:
    """A language model of bytes in every form, and what its commands read beside it."""
    data = write_corpus(folder)
    write_checkpoint(folder / "model.pt", data)
    (folder / "prompt.txt").write_text("a text to continue")
    (folder / "template.json").write_text(
        '{"system": "{content}</s>", "user": "{content}\\n", "assistant": "{content}</s>"}'
    )
    at = ["convert", "to-released", str(folder / "model.pt")]
    main([*at, str(folder / "one.safetensors")])
    main([*at, str(folder / "released"), "--shards", "1"])
    main(["convert", "to-hf", str(folder / "model.pt"), str(folder / "hf"), "--data", str(data)])


def write_records(folder: Path) -> None:
    """Two runs and what they recorded."""
    for name in ("one", "other"):
        append(folder / name / "metrics.jsonl", start_line(config={"common": {"seed": 1}}))
        for event in ("train_inner", "valid", "train"):
            line = {"event": event, "split": "valid", "step": 5, "epoch": 1, "loss": 2.0}
            append(folder / name / "metrics.jsonl", line)
        append(folder / name / "results.jsonl", result())


def write_configuration(folder: Path) -> None:
    """A recipe in a folder of its own, and its data."""
    shutil.copytree(ROOT / "recipes" / "lra", folder / "lra", symlinks=True)
    shutil.copy(ROOT / "recipes" / "base.yaml", folder)
    DATA["listops"](folder / "data")


def _evaluation(command: str, *files: str, options: tuple[str, ...] = ()) -> dict:
    return {(command, "checkpoint_best.pt", *DATA_HERE, *options): ("checkpoint_best.pt", *files)}


def _language_model(*words: str, files: tuple[str, ...] = ()) -> dict:
    command, *options = words
    return {(command, "model.pt", *DATA_HERE, *options): files}


_SEQUENCES = tuple(f"data/{n}" for n in (
    "manifest.json", "test.labels.bin", "test.inputs.bin", "test.inputs.offsets.bin",
))  # fmt: skip
_CORPUS = tuple(f"data/{name}" for name in ("manifest.json", "dict.txt", "test.bin", "test.idx"))
_UPDATE = ("common.cpu=true", "dataset.batch_size=4", *run_of("lra/listops_demo").overrides)

BENCHES = {
    "classifier": Bench(
        write_classifier,
        {
            **_evaluation("evaluate", *_SEQUENCES, "results.jsonl", options=(CPU,)),
            **_evaluation("inspect"),
            ("train", "--config-dir", str(ROOT / "recipes" / "lra"), "--config-name", "listops_demo",
             *DATA_HERE, "--save-dir", ".", *_UPDATE, "optimization.max_update=2"): (
                "checkpoint_last.pt",
            ),
        },
        tolerant=("results.jsonl",),
    ),
    "translator": Bench(
        write_translator,
        _evaluation(
            "evaluate-translation", "data/manifest.json", "data/dict.en.txt", "data/test.en-de.en.bin",
            "data/test.en-de.en.idx", options=(CPU,),
        ),
    ),
    "language model": Bench(
        write_language_model,
        {
            **_language_model("evaluate-lm", CPU, files=("model.pt", *_CORPUS)),
            **_language_model("evaluate", CPU, files=("model.pt", *_CORPUS)),
            **_language_model(
                "sample", CPU, "--tokens", "3", "--prompt-file", "prompt.txt",
                files=("prompt.txt", "model.pt"),
            ),
            **_language_model("chat", CPU, "--template", "template.json", files=("template.json",)),
            ("convert", "to-released", "model.pt", "out"): ("model.pt",),
            ("convert", "to-hf", "model.pt", "out", *DATA_HERE): ("data/dict.txt",),
            ("convert", "from-released", "released", "out.pt", *DATA_HERE): (
                "released/consolidated.pth", "released/config.json",
            ),
            ("convert", "from-released", "one.safetensors", "out.pt", *DATA_HERE): (
                "one.safetensors", "one.json",
            ),
            ("convert", "from-hf", "hf", "out.pt", *DATA_HERE): (
                "hf/config.json", "hf/model.safetensors",
            ),
        },
        tolerant=("prompt.txt",),
    ),
    "records": Bench(
        write_records,
        {
            ("report", "."): ("one/metrics.jsonl", "one/results.jsonl"),
            ("report", "one", "--training-curve"): ("one/metrics.jsonl",),
        },
        tolerant=("one/metrics.jsonl", "one/results.jsonl"),
    ),
    "configuration": Bench(
        write_configuration,
        {
            ("train", "--config-dir", "lra", "--config-name", "listops_demo", *DATA_HERE,
             "--save-dir", "run", *_UPDATE, "optimization.max_update=1"): (
                "lra/listops_demo.yaml", "lra/settings/listops.yaml", "base.yaml",
                "data/train.inputs.bin",
            ),
        },
    ),
}  # fmt: skip


def _preparation(
    recipe: str, write: Callable[[Path], object], *files: str, options: tuple[str, ...] = ()
) -> Bench:
    def write_source(folder: Path) -> None:
        write(folder / "raw")

    paths = tuple(f"raw/{name}" for name in files)
    # single damaged items of a source are left out and counted
    return Bench(write_source, {("prepare", recipe, "raw", "out", *options): paths}, tolerant=paths)


def write_enwik8(folder: Path) -> None:
    """An archive that holds too little."""
    import zipfile

    folder.mkdir()
    with zipfile.ZipFile(folder / "enwik8.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("enwik8", b"text " * 100)


def write_translations(folder: Path) -> None:
    """Files of parallel lines."""
    folder.mkdir()
    for name, side in itertools.product(("train", "valid", "test", "test1"), ("en", "de")):
        (folder / f"{name}.{side}").write_text("one two three\nfour five\n" * 4)


BENCHES |= {
    f"prepare {recipe}": _preparation(recipe, *arguments, options=options)
    for recipe, arguments, options in (
        ("lra/listops", (write_listops, "basic_train.tsv"), ()),
        ("lra/text", (write_reviews, "train/neg/0_1.txt"), ("--subset",)),
        ("lra/retrieval", (write_papers, "new_aan_pairs.train.tsv"), ()),
        ("lra/image", (write_cifar, "data_batch_1", "batches.meta"), ()),
        (
            "lra/pathfinder",
            (
                write_pathfinder,
                "pathfinder32/curv_contour_length_14/metadata/1.npy",
                "pathfinder32/curv_contour_length_14/imgs/1/sample_0.png",
            ),
            ("--workers", "1"),
        ),
        (
            "speech/sc_raw",
            (
                functools.partial(write_speech, per_word=20, length=400),
                "validation_list.txt", "yes/00000000_nohash_0.wav",
            ),
            ("--splits", "official", "--seconds", "0.025"),
        ),
        (
            "imagenet/imagenet",
            (write_tree, "train/n01440764/n01440764_0.JPEG"),
            (),
        ),
        ("lm/wikitext103", (wikitext, "wiki.train.tokens"), ()),
        ("lm/enwik8", (write_enwik8, "enwik8.zip"), ()),
        ("lm/pg19", (write_text, "train/0.txt"), ("--tokens", "bytes", "--workers", "1")),
        ("lm/text", (write_text, "train/0.txt"), ("--workers", "1")),
        ("lm/instruct", (write_conversations, "train.jsonl"), ()),
        ("translation/wmt16_en_de", (write_translations, "train.en"), tuple(PAIR_OPTIONS)),
    )
}  # fmt: skip


def run_in_copy(
    template: Path, words: tuple[str, ...], change: Callable[[], object] | None = None
) -> int:
    """Copy ``template`` to the working directory, change something there, and run the command."""
    shutil.copytree(template, ".", symlinks=True, dirs_exist_ok=True)
    if change is not None:
        change()
    return main(words)


def cases(name: str, template: Path) -> Iterator[Case]:
    """Yield the cases of the bench ``name``, whose folder is ``template``."""
    bench = BENCHES[name]
    for words, files in bench.commands.items():
        for file, (what, damage) in itertools.product(files, DAMAGES.items()):
            absent = what == "missing" and file in MAY_BE_MISSING
            refused = file not in bench.tolerant and not absent
            run = functools.partial(
                run_in_copy, template, words, functools.partial(damage, Path(file))
            )
            yield Case(f"{name}: {words[0]}, {file} is {what}", run, refused)
