"""The tokenizer of a model's corpus with transformers' interface."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizer

from megalodon_tasks.data.corpus import DICTIONARY
from megalodon_tasks.data.dictionary import read_dictionary
from megalodon_tasks.data.tokenizers import MODEL_FILE, save_tokenizer, tokenizer_of


class MegalodonTokenizer(PreTrainedTokenizer):
    """Bytes, SentencePiece pieces or words, numbered as fairseq numbers them.

    A text starts with the token that ends documents, as in training.  ``decode`` does what
    ``megalodon sample`` does.  tokenizer: the description that the manifest of a corpus stores.
    """

    vocab_files_names = {"dictionary_file": DICTIONARY, "sentencepiece_file": MODEL_FILE}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(
        self,
        dictionary_file: str,
        tokenizer: dict[str, Any],
        sentencepiece_file: str | None = None,
        **kwargs: Any,
    ) -> None:
        path = Path(dictionary_file)
        self._dictionary = read_dictionary(path)
        self._tokenizer = tokenizer_of(path.parent, tokenizer, self._dictionary)
        kwargs = {
            "bos_token": "</s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            "padding_side": "left",
            # "</s>" in a text is text, and not the end of a document.
            "split_special_tokens": True,
        } | kwargs
        super().__init__(tokenizer=tokenizer, **kwargs)

    @property
    def vocab_size(self) -> int:
        """The number of symbols."""
        return len(self._dictionary)

    def get_vocab(self) -> dict[str, int]:
        """Return symbol -> token."""
        return dict(self._dictionary.indices)

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return [self._dictionary[token] for token in self._tokenizer.encode(text).tolist()]

    def _convert_token_to_id(self, token: str) -> int:
        return self._dictionary.index(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self._dictionary[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Return the text of ``tokens``."""
        return "".join(self._tokenizer.stream(map(self._dictionary.index, tokens)))

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Put the start of a document before each text."""
        start = [self._tokenizer.eos]
        more = [] if token_ids_1 is None else start + token_ids_1
        return start + token_ids_0 + more

    def save_vocabulary(
        self, save_directory: str, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write ``dict.txt``, and the model of SentencePiece."""
        folder = Path(save_directory)
        return tuple(str(folder / name) for name in save_tokenizer(self._tokenizer, folder))
