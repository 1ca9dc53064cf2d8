"""Prepare conversations for instruction tuning.

    megalodon prepare lm/instruct SOURCE OUT [--vocabulary DATA] [--template FILE]

SOURCE holds ``train.jsonl``, ``valid.jsonl`` and ``test.jsonl``, a conversation a line, in the form that
``megalodon_tasks/data/conversations.py`` describes.  A line that is not one is an error that names it.
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

from megalodon_tasks.data import preparing
from megalodon_tasks.data.conversations import (
    ConversationEncoder,
    ConversationForm,
    Template,
    parse_conversation,
)
from megalodon_tasks.data.corpus import SPLITS, Document, read_corpus
from megalodon_tasks.data.manifest import OnBytes
from megalodon_tasks.data.provenance import origin_of
from megalodon_tasks.data.sources import Origin
from megalodon_tasks.data.tokenizers import (
    MODEL_FILE,
    ByteTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    corpus_tokenizer,
    with_tokenizer,
)
from megalodon_tasks.recipes.lm import prepare_text, text_files
from megalodon_tasks.training.recorded_names import digest

NAME = "instruct"
# What SOURCE may hold in place of --vocabulary.
BESIDE = ("vocabulary", MODEL_FILE)


def find_files(source: Path) -> dict[str, Path]:
    """Return the file of each split; raise ``ValueError`` if one is missing."""
    files = {split: source / f"{split}.jsonl" for split in SPLITS}
    missing = [path.name for path in files.values() if not path.is_file()]
    if missing:
        raise ValueError(
            f"{source} has no {', '.join(missing)}; needed are "
            f"{', '.join(path.name for path in files.values())} with a conversation a line"
        )
    return files


def find_tokenizer(vocabulary: Path | None, source: Path) -> Tokenizer:
    """Return the tokenizer of a folder of prepared text or a SentencePiece model, or of bytes.

    Without ``vocabulary`` it is that of SOURCE/vocabulary or SOURCE/sentencepiece.model, if that exists.
    """
    if vocabulary is None:
        vocabulary = next((source / name for name in BESIDE if (source / name).exists()), None)
    if vocabulary is None:
        return ByteTokenizer()
    if vocabulary.is_file():
        return SentencePieceTokenizer(vocabulary)
    return corpus_tokenizer(read_corpus(vocabulary))


def prepare(
    source: Path, out: Path, tokenizer: Tokenizer, template: Template, replace: bool = False
) -> bool:
    """Prepare conversations in ``out``; return False if they are there already, from the same files.

    replace: data that was prepared with another vocabulary or template, instead of refusing to.
    Raises ``ValueError`` for a line that is no conversation, and for a vocabulary that lacks a symbol of
    the template.
    """
    encoder = ConversationEncoder(template, tokenizer)
    origins = {split: Origin.of_file(path) for split, path in find_files(source).items()}
    form = ConversationForm(
        benchmark=NAME,
        source={
            "origin": origin_of(source, "text"),
            "split_rule": "the files",
            "settings": {
                "vocabulary": digest(tokenizer.dictionary().symbols),
                "template": template.texts,
            },
            "published": None,
        },
        words_rule=text_files.WORDS_RULE,
        one_item_each=False,
        template=template.texts,
    )
    return preparing.Preparation(
        title=NAME,
        form=form,
        origins=origins,
        splits={
            split: preparing.from_the_start(functools.partial(_read, encoder, origin))
            for split, origin in origins.items()
        },
        complete=lambda form, inside: with_tokenizer(form, tokenizer, inside),
        replaces=replace,
    ).write(out)


def _read(encoder: ConversationEncoder, origin: Origin, on_bytes: OnBytes) -> Iterator[Document]:
    for number, line in enumerate(origin.lines(on_bytes), start=1):
        place = f"{origin.paths[0]}, line {number}"
        try:
            conversation = parse_conversation(line)
        except ValueError as error:
            raise ValueError(f"{place}: the conversation {error}") from None
        try:
            items = tuple(encoder.items(conversation))
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        said = [message.content for message in conversation]
        yield Document(
            name=place,
            items=items,
            words=sum(len(text.split()) for text in said),
            characters=sum(map(len, said)),
            bytes=sum(len(text.encode("utf-8")) for text in said),
        )


def main(arguments: Sequence[str] | None = None) -> Path:
    """Run the command; return the folder of the prepared data."""
    parser = preparing.command_line(
        "lm/instruct",
        "Prepare conversations for instruction tuning.",
        "folder with train.jsonl, valid.jsonl and test.jsonl",
    )
    parser.add_argument(
        "--vocabulary",
        type=Path,
        help="prepared data, or a SentencePiece model, whose tokens to use: those of the checkpoint to "
        f"start from (default: {' or '.join(f'SOURCE/{name}' for name in BESIDE)}, else bytes)",
    )
    parser.add_argument(
        "--template",
        type=Path,
        help="JSON file with a text for each role (default: see the README)",
    )
    parser.add_argument(
        "--replace",
        action="store_true",
        help="replace data in OUT of another vocabulary or template",
    )
    options = parser.parse_args(arguments)

    def write() -> bool:
        template = Template() if options.template is None else Template.read(options.template)
        tokenizer = find_tokenizer(options.vocabulary, options.source)
        return prepare(options.source, options.out, tokenizer, template, options.replace)

    return preparing.run(parser, options, write, prepare_text.report, read_corpus)
