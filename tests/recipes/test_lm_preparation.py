"""Preparing text: files in the releases' layouts, counts, damage, and resuming."""

import random
import zipfile

import pytest
from fairseq import options
from fairseq_cli import preprocess as fairseq_preprocess

from megalodon_tasks.data.corpus import read_corpus
from megalodon_tasks.data.manifest import MANIFEST, Manifest
from megalodon_tasks.data.token_stream import open_stream
from megalodon_tasks.data.tokenizers import ByteTokenizer, SentencePieceTokenizer, WordTokenizer
from megalodon_tasks.recipes.lm import (
    prepare_enwik8,
    prepare_pg19,
    prepare_text,
    prepare_wikitext103,
    python_topics,
    text_files,
)
from megalodon_tasks.recipes.lm.task import load_dictionary
from tests.recipes.lm_data import quietly

WORDS = [
    "the",
    "horse",
    "of",
    "a",
    "house",
    "in",
    "snow",
    "on",
    "stone",
    "and",
    "hill",
    "with",
    "water",
]


def text(seed, words=60):
    draw = random.Random(seed)
    lines = [" ".join(draw.choices(WORDS, k=6)) for _ in range(words // 6)]
    return "\n".join(lines) + "\n"


def books(folder, counts=(6, 2, 3)):
    seed = 0
    for name, count in zip(("train", "validation", "test"), counts, strict=True):
        (folder / name).mkdir(parents=True)
        for _ in range(count):
            seed += 1
            (folder / name / f"{seed}.txt").write_text(text(seed))
    return folder


def text_of(split, document):
    tokens = split.tokens(*split.offsets[document : document + 2]).tolist()
    assert tokens[-1] == ByteTokenizer.eos
    return "".join(ByteTokenizer().stream(tokens[:-1]))


@pytest.mark.parametrize("workers", [1, 2])
def test_books_keep_their_boundaries_and_order(tmp_path, workers):
    source = books(tmp_path / "books", (12, 2, 3))
    prepare_text.main([str(source), str(tmp_path / "out"), "--workers", str(workers)])
    corpus = read_corpus(tmp_path / "out")
    assert corpus.name == "books"
    split = corpus.split("train")
    assert [text_of(split, i) for i in range(12)] == [text(seed) for seed in range(1, 13)]
    assert split.info.words == sum(len(text(seed).split()) for seed in range(1, 13))
    assert split.info.words_rule == text_files.WORDS_RULE


def test_the_same_files_are_not_prepared_again(tmp_path, capsys):
    source = books(tmp_path / "books")
    arguments = [str(source), str(tmp_path / "out"), "--workers", "1"]
    prepare_text.main(arguments)
    prepare_text.main(arguments)
    assert "prepared already from the same files, nothing to do" in capsys.readouterr().out
    (source / "test" / "9.txt").write_text("changed\n")
    prepare_text.main(arguments)
    assert read_corpus(tmp_path / "out").info("test").tokens < 2 * len(text(10)) + 20


def test_pieces_are_trained_and_reused(tmp_path, capsys):
    source = books(tmp_path / "books", (40, 2, 3))
    out = tmp_path / "out"
    prepare_pg19.main([str(source), str(out), "--pieces", "290", "--workers", "1"])
    tokenizer = SentencePieceTokenizer(out / "sentencepiece.model")
    split = read_corpus(out).split("valid")
    tokens = split.tokens(0, int(split.offsets[1]))
    assert "".join(tokenizer.stream(tokens[:-1].tolist())) == text(41)
    assert "the release has 28,602 books, this folder 40" in capsys.readouterr().out
    given = tmp_path / "given"
    model = ["--sentencepiece-model", str(out / "sentencepiece.model"), "--workers", "1"]
    prepare_pg19.main([str(source), str(given), *model])
    assert (given / "train.bin").read_bytes() == (out / "train.bin").read_bytes()


def test_published_words_divide_where_the_number_of_books_is_published(tmp_path, monkeypatch):
    monkeypatch.setitem(prepare_pg19.BOOKS, "test", 3)
    source = books(tmp_path / "books")
    prepare_pg19.prepare(source, tmp_path / "out", prepare_text.Vocabulary())
    corpus = read_corpus(tmp_path / "out")
    assert corpus.info("test").words == 6_966_499
    assert "section 4.2; 180 counted" in corpus.info("test").words_rule
    assert corpus.info("train").words == 360


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: (s / "test").rename(s / "other"), "test is missing"),
        (lambda s: [p.unlink() for p in (s / "test").iterdir()], "test holds no .txt file"),
        (lambda s: (s / "metadata.csv").write_text("1,a\n"), "does not list 10 of the books"),
    ],
)
def test_wrong_folders_are_named(tmp_path, capsys, change, message):
    change(source := books(tmp_path / "books"))
    with pytest.raises(SystemExit) as end:
        prepare_pg19.main([str(source), str(tmp_path / "out"), "--tokens", "bytes"])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_damaged_books_are_left_out_or_refused(tmp_path, capsys):
    source = books(tmp_path / "books")
    (source / "train" / "2.txt").write_bytes(b"good \xff bad")
    (source / "train" / "3.txt").write_bytes(b" \n")
    arguments = [str(source), str(tmp_path / "out"), "--workers", "1"]
    with pytest.raises(SystemExit):
        prepare_text.main([*arguments, "--strict"])
    assert "2.txt is not UTF-8: byte 0xff at 5" in capsys.readouterr().err
    assert not (tmp_path / "out" / MANIFEST).exists()
    prepare_text.main(arguments)
    said = capsys.readouterr().out
    assert "left out as damaged: 2" in said
    assert "3.txt is empty" in said
    assert read_corpus(tmp_path / "out").info("train").documents == 4


def test_options_that_contradict_each_other_are_refused(tmp_path, capsys):
    source = books(tmp_path / "books")
    for more, message in (
        (["--sentencepiece-model", "m"], "is given, but --tokens is bytes"),
        (["--tokens", "sentencepiece", "--sentencepiece-model", "m"], "no SentencePiece model m"),
        (["--tokens", "sentencepiece", "--pieces", "99999"], "99999 pieces cannot be trained"),
    ):
        with pytest.raises(SystemExit):
            prepare_text.main([str(source), str(tmp_path / "out"), "--workers", "1", *more])
        assert message in capsys.readouterr().err


SIZE = 4_000_000  # a small enwik8, with items of several sizes


@pytest.fixture(scope="module")
def enwik8(tmp_path_factory):
    path = tmp_path_factory.mktemp("enwik8") / "enwik8"
    path.write_bytes((text(1, 600) + "Ü").encode()[: SIZE // 1000] * 1000)
    data = path.read_bytes()
    path.write_bytes((data + b"x" * SIZE)[:SIZE])
    return path


@pytest.mark.parametrize("packed", [False, True])
def test_enwik8_is_split_90_5_5_byte_by_byte(enwik8, tmp_path, packed):
    source = enwik8
    if packed:
        source = tmp_path / "enwik8.zip"
        with zipfile.ZipFile(source, "w") as archive:
            archive.write(enwik8, "enwik8")
    assert prepare_enwik8.prepare(source, tmp_path / "out", SIZE)
    assert not prepare_enwik8.prepare(source, tmp_path / "out", SIZE)
    corpus, data = read_corpus(tmp_path / "out"), enwik8.read_bytes()
    for split, part in (("train", data[:3_600_000]), ("valid", data[3_600_000:3_800_000])):
        found = corpus.split(split)
        assert len(found) == 1
        assert (found.tokens(0, SIZE) - 4).astype("uint8").tobytes() == part
        assert found.info.bytes == len(part)
        assert found.info.characters == len(part.decode(errors="ignore"))
    assert corpus.info("train").items == 4


def test_a_truncated_enwik8_is_refused(enwik8, tmp_path, capsys):
    for source, message in (
        (enwik8.parent, "holds 4,000,000 bytes, enwik8 has 100,000,000"),
        (tmp_path, "holds neither enwik8 nor enwik8.zip"),
    ):
        with pytest.raises(SystemExit):
            prepare_enwik8.main([str(source), str(tmp_path / "out")])
        assert message in capsys.readouterr().err
    (tmp_path / "enwik8.zip").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(ValueError, match="is no archive that holds enwik8"):
        prepare_enwik8.prepare(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def wikitext(folder, articles=(4, 2, 3)):
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in zip(("train", "valid", "test"), articles, strict=True):
        lines = []
        for number in range(count):
            body = text(number).splitlines()
            lines += [
                "",
                f"= Article {number} =",
                "",
                body[0],
                "",
                "= = Section = =",
                "",
                *body[1:],
            ]
        written = "".join(f" {line} \n" if line else " \n" for line in lines)
        (folder / f"wiki.{split}.tokens").write_text(written)
    return folder


@pytest.mark.parametrize("workers", [1, 2])
def test_wikitext_equals_fairseq_preprocess(tmp_path, workers):
    source, theirs = wikitext(tmp_path / "wikitext-103"), tmp_path / "theirs"
    prepare_wikitext103.main([str(tmp_path), str(tmp_path / "ours"), "--workers", str(workers)])
    words = f"--only-source --destdir {theirs} --workers 1"
    for split in ("train", "valid", "test"):
        words += f" --{split}pref {source}/wiki.{split}.tokens"
    parser = options.get_preprocessing_parser()
    quietly(lambda: fairseq_preprocess.main(parser.parse_args(words.split())))
    for name in ("dict.txt", *(f"{s}.{e}" for s in ("train", "test") for e in ("bin", "idx"))):
        assert (tmp_path / "ours" / name).read_bytes() == (theirs / name).read_bytes(), name


def test_wikitext_articles_and_words(tmp_path, capsys):
    source = wikitext(tmp_path / "raw")
    prepare_wikitext103.main([str(source), str(tmp_path / "out"), "--workers", "1"])
    said = capsys.readouterr().out
    assert "words, the release has 245,569: figures are not comparable" in said
    assert "the release gives 267,744" in said
    split = read_corpus(tmp_path / "out").split("test")
    lines = (source / "wiki.test.tokens").read_text().splitlines()
    assert split.info.first_items == [i - 1 for i, line in enumerate(lines) if "Article" in line]
    assert split.info.words == sum(len(line.split()) + 1 for line in lines) == split.info.tokens


def test_articles_are_documents_in_training(tmp_path):
    source = wikitext(tmp_path / "raw")
    prepare_wikitext103.prepare(source, tmp_path / "out")
    dictionary = load_dictionary(str(tmp_path / "out"))
    stream = open_stream(tmp_path / "out", "test", dictionary, documents="corpus")
    assert len(stream.document_starts) == 3
    for number, start in enumerate(stream.document_starts):
        words = dictionary.string(stream.read(start, start + 6))  # an empty line, then the title
        assert words.split("\n")[-1] == f"= Article {number} ="


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: (s / "wiki.valid.tokens").unlink(), "wiki.valid.tokens is missing beside"),
        (lambda s: (s / "wiki.valid.tokens").write_text(""), "wiki.valid.tokens is empty"),
        (
            lambda s: (s / "wiki.valid.tokens").write_bytes(b" a \n b \xe9 \n"),
            r"wiki.valid.tokens, line 2 is not UTF-8: byte 0xe9 at 3",
        ),
    ],
)
def test_damaged_wikitext_is_named(tmp_path, change, message):
    change(source := wikitext(tmp_path / "raw"))
    with pytest.raises(ValueError, match=message):
        prepare_wikitext103.prepare(source, tmp_path / "out")
    assert not (tmp_path / "out" / MANIFEST).exists()


def test_an_interrupted_wikitext_continues_with_the_next_article(tmp_path, monkeypatch):
    source, encoded = wikitext(tmp_path / "raw"), []
    encode = WordTokenizer.encode

    def counted(self, text):
        if "Article" in text:
            encoded.append(text)
            if len(encoded) == 6:  # the second of the split valid
                raise KeyboardInterrupt
        return encode(self, text)

    monkeypatch.setattr(WordTokenizer, "encode", counted)
    monkeypatch.setattr(prepare_wikitext103, "PORTION", 1)
    with pytest.raises(KeyboardInterrupt):
        prepare_wikitext103.prepare(source, tmp_path / "out")
    assert not (tmp_path / "out" / MANIFEST).exists()
    assert prepare_wikitext103.prepare(source, tmp_path / "out")
    assert len(encoded) == 6 + 1 + 3
    Manifest.read(tmp_path / "out").verify()
    prepare_wikitext103.prepare(source, tmp_path / "whole")
    for name in Manifest.read(tmp_path / "out").files:
        whole = (tmp_path / "whole" / name).read_bytes()
        assert (tmp_path / "out" / name).read_bytes() == whole, name


def test_other_line_separators_are_refused(tmp_path):
    source = wikitext(tmp_path / "raw")
    (source / "wiki.test.tokens").write_bytes(b" a \r b \n")
    with pytest.raises(ValueError, match=r"line 1 has a line separator other than \\n"):
        prepare_wikitext103.prepare(source, tmp_path / "out")


def test_damaged_data_is_prepared_again_and_other_data_is_not_replaced(tmp_path, capsys):
    source, out = books(tmp_path / "books"), tmp_path / "out"
    words = [str(source), str(out), "--workers", "1", "--verify"]
    prepare_text.main(words)
    content = (out / "train.bin").read_bytes()
    damaged = content[:5] + bytes([content[5] ^ 1]) + content[6:]
    (out / "train.bin").write_bytes(damaged)
    with pytest.raises(SystemExit):
        prepare_text.main([*words, "--name", "other"])
    assert "holds prepared data of 'books'" in capsys.readouterr().err
    assert (out / "train.bin").read_bytes() == damaged
    with pytest.raises(SystemExit):
        prepare_text.main([*words, "--if-missing"])
    assert "train.bin is damaged" in capsys.readouterr().err
    prepare_text.main(words)
    assert (out / "train.bin").read_bytes() == content


def test_topics_of_python_in_both_forms(tmp_path):
    python_topics.main([str(tmp_path)])
    python_topics.main([str(tmp_path), "--words"])
    files = text_files.find_files(tmp_path)
    sizes = {split: len(paths) for split, paths in files.items()}
    assert sizes["train"] > 6 * sizes["test"] > 0
    assert max(path.stat().st_size for path in files["test"]) > 16_384
    heads = (tmp_path / "wiki.test.tokens").read_text().count("\n \n = ")
    assert heads == sizes["test"] - 1
