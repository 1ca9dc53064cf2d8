"""Prepare WikiText-103: ``wiki.{train,valid,test}.tokens`` as ``fairseq-preprocess --only-source`` does.

    megalodon prepare lm/wikitext103 SOURCE OUT

The dictionary and the binarised files are byte for byte those of that command: a word is what stands
between spaces, an end token closes each line and counts as a word.  The manifest says where the articles
begin.

Counts to expect (Mega's README and Baevski & Auli, arXiv 1809.10853): 267,744 dictionary entries, and
103,227,021 / 217,646 / 245,569 words with the end tokens.
"""

import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from fairseq.tasks.fairseq_task import FairseqTask

from megalodon_tasks.data import preparing
from megalodon_tasks.data.corpus import DICTIONARY, Corpus, CorpusForm, Document, read_corpus
from megalodon_tasks.data.dictionary import read_dictionary
from megalodon_tasks.data.finding import find_files, folders_in, not_recognised
from megalodon_tasks.data.manifest import OnBytes
from megalodon_tasks.data.parallel import map_in_order
from megalodon_tasks.data.provenance import origin_of
from megalodon_tasks.data.sources import Origin, check_source
from megalodon_tasks.data.tokenizers import WordTokenizer, refuse_reserved, with_tokenizer
from megalodon_tasks.files import read_lines
from megalodon_tasks.recipes.lm import prepare_text, text_files

NAME = "wikitext103"
FILES = {split: f"wiki.{split}.tokens" for split in ("train", "valid", "test")}
PUBLISHED = {"train": 103_227_021, "valid": 217_646, "test": 245_569}
PUBLISHED_VOCABULARY = 267_744
WORDS_RULE = "words between spaces and one end token a line"
# ` = Title = `; sections have more signs
_TITLE = re.compile(r" ?= (?!= )[^\n]*(?<! =) = ?")
PORTION = 16  # articles that a process encodes before it sends them


class Article(NamedTuple):
    """Bytes ``start`` to ``stop`` of a file."""

    path: Path
    start: int
    stop: int


class WikiText:
    """The articles of the three files in ``source``, encoded by ``workers`` processes.

    Raises ``ValueError`` naming a file that is missing.
    """

    def __init__(self, source: Path, workers: int) -> None:
        check_source(source, f"the folder with {FILES['train']} and the others")
        files = find_files(folders_in(source), FILES, "unpack the archive again")
        if files is None:
            raise not_recognised(
                source,
                ", ".join(FILES.values()),
                "get wikitext-103-v1.zip (Merity et al.) and unpack it",
            )
        self.files, self.workers = files, workers

    def complete(self, form: CorpusForm, inside: Path) -> CorpusForm:
        """Find the articles and build the dictionary; raise ``ValueError`` for damaged text."""
        self._articles = {split: find_articles(path) for split, path in self.files.items()}
        path = inside / DICTIONARY
        if path.is_file():
            dictionary = read_dictionary(path)
        else:
            dictionary = FairseqTask.build_dictionary(
                [str(self.files["train"])], workers=self.workers
            )
        self._tokenizer = WordTokenizer(dictionary)
        return with_tokenizer(form, self._tokenizer, inside)

    def read(self, split: str, first: int, on_bytes: OnBytes) -> Iterator[Document]:
        """Yield the articles of ``split`` from number ``first`` on, an item for each line."""
        articles = self._articles[split]
        on_bytes(articles[first].start if first < len(articles) else articles[-1].stop)
        encode = functools.partial(_encode, self._tokenizer)
        for document in map_in_order(encode, articles[first:], self.workers, PORTION):
            on_bytes(document.bytes)
            yield document


def find_articles(path: Path) -> list[Article]:
    """Find where the articles of a file begin and end; the first begins with the file.

    An article begins with the empty line before its title, which stands between two of them.  In a file
    without such titles, as some tools leave it, every line of the form of a title begins an article.

    Raises ``ValueError`` for a file that is empty, is not UTF-8, has no title, or has line separators
    other than ``\\n`` and ``\\r\\n``, which fairseq takes for ends of lines too, and for a word that is
    a special symbol.
    """
    between_empty, any_title, offset, first_text = [], [], 0, None
    before, before_that = (0, ""), (0, "")  # the two lines before: where they begin, and their text
    for line, size in _lines(path):
        if first_text is None and line.strip():
            first_text = offset
        if _TITLE.fullmatch(line):
            any_title.append(offset)
        if _TITLE.fullmatch(before[1]) and not before_that[1].strip() and not line.strip():
            between_empty.append(before_that[0])
        before_that, before = before, (offset, line)
        offset += size
    if not offset:
        raise ValueError(f"{path} is empty; copy it again")
    if not any_title:
        raise ValueError(
            f"{path} has no title, a line such as ' = Title = ', so its articles cannot be found; take "
            "the files of the release, or prepare text of your own with megalodon prepare lm/text"
        )
    starts = [0, *(start for start in between_empty or any_title if start > first_text)]
    return [Article(path, *part) for part in zip(starts, [*starts[1:], offset], strict=True)]


def _lines(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the text of each line without its end, and its bytes with it; raise as `find_articles`."""
    for number, data in enumerate(read_lines(path), start=1):
        line, damage = text_files.decoded(data)
        where = f"{path}, line {number}"
        if damage is not None and damage != "is empty":
            raise ValueError(f"{where} {damage}")
        line = line.removesuffix("\n").removesuffix("\r")
        if "\r" in line:
            raise ValueError(f"{where} has a line separator other than \\n")
        refuse_reserved(line, where)
        yield line, len(data)


def _encode(tokenizer: WordTokenizer, article: Article) -> Document:
    with open(article.path, "rb") as stream:
        stream.seek(article.start)
        data = stream.read(article.stop - article.start)
    text = data.decode("utf-8").replace("\r\n", "\n")
    lines = text.removesuffix("\n").split("\n")
    items = tuple(tokenizer.encode(f"{line}\n") for line in lines)
    words = sum(len(item) for item in items)
    name = f"{article.path}, byte {article.start}"
    return Document(name, items, words, len(text), len(text.encode()))


def prepare(source: Path, out: Path, workers: int = 1) -> bool:
    """Prepare WikiText-103 in ``out``; return False if it is there already, from the same files.

    Raises ``ValueError`` for files that are missing, empty or not UTF-8.
    """
    text = WikiText(source, workers)
    form = CorpusForm(
        benchmark=NAME,
        source={
            "origin": origin_of(source, "release"),
            "split_rule": "the files",
            "settings": {},
            "published": {
                "counts": {"tokens": PUBLISHED},
                "vocabulary": {
                    "name": f"{PUBLISHED_VOCABULARY:,} words",
                    "symbols": PUBLISHED_VOCABULARY,
                },
            },
        },
        words_rule=WORDS_RULE,
        one_item_each=False,
    )
    return preparing.Preparation(
        title=NAME,
        form=form,
        origins={split: Origin.of_file(path) for split, path in text.files.items()},
        splits={split: functools.partial(text.read, split) for split in text.files},
        complete=text.complete,
    ).write(out)


def report(corpus: Corpus) -> list[str]:
    """Return lines that say what the prepared corpus holds and where that differs from the release."""
    lines = prepare_text.report(corpus)
    found = corpus.manifest.form["symbols"]
    if found != PUBLISHED_VOCABULARY:
        lines.append(f"dictionary: {found:,} entries, the release gives {PUBLISHED_VOCABULARY:,}")
    for split, words in PUBLISHED.items():
        if corpus.info(split).tokens != words:
            lines.append(
                f"{split}: {corpus.info(split).tokens:,} words, the release has {words:,}: figures are "
                "not comparable with published ones"
            )
    return lines


def main(arguments: Sequence[str] | None = None) -> Path:
    """Run the command; return the folder of the prepared data."""
    parser = preparing.command_line(
        "lm/wikitext103",
        "Prepare WikiText-103 for language modelling.",
        "folder with wiki.{train,valid,test}.tokens",
    )
    preparing.add_workers_option(parser)
    options = parser.parse_args(arguments)
    return preparing.run(
        parser,
        options,
        lambda: prepare(options.source, options.out, options.workers),
        report,
        read_corpus,
    )
