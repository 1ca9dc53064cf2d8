"""Small language models, in double precision, away from their symmetric start."""

import torch
from fairseq.data import Dictionary

from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.fairseq_models import (
    MegalodonDecoder,
    MegalodonLanguageModel,
    MegalodonLanguageModelConfig,
    build_language_model,
)
from megalodon_tasks.models.language_model import CausalLM

CHUNK = 4
SIZES = {
    "model_dim": 16,
    "num_layers": 2,
    "num_heads": 2,
    "z_dim": 8,
    "value_dim": 24,
    "ffn_hidden_dim": 20,
    "cema_ndim": 4,
    "norm_num_groups": 4,
    "chunk_size": CHUNK,
}


def perturbed(module):
    """Return the module in double precision and evaluation, away from its initial scales and norms."""
    module = module.double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return module


def make_lm(vocab_size=11, scale_emb=True, share_emb=False, **changes) -> CausalLM:
    torch.manual_seed(0)
    config = MegalodonConfig(**(SIZES | changes), causal=True)
    return perturbed(CausalLM(config, vocab_size, scale_emb=scale_emb, share_emb=share_emb))


def make_dictionary(words=7) -> Dictionary:
    dictionary = Dictionary()
    for word in range(words):
        dictionary.add_symbol(f"w{word}", 100 - word)
    return dictionary


def make_model(dictionary=None, **changes) -> MegalodonLanguageModel:
    """Build the model with fairseq's interface, for a vocabulary of 11 by default."""
    torch.manual_seed(0)
    dictionary = dictionary or make_dictionary()
    config = MegalodonLanguageModelConfig(**(SIZES | changes))
    lm = build_language_model(config, len(dictionary), dictionary.pad())
    return perturbed(MegalodonLanguageModel(MegalodonDecoder(dictionary, lm)))


def make_tokens(batch=2, length=15, vocab_size=11):
    """Draw tokens without the special symbols, the same each time."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(4, vocab_size, (batch, length), generator=generator)


def pieces_of(tokens, lengths):
    """Cut ``tokens`` along its length; the last piece takes the remaining steps."""
    return tokens.split([*lengths, tokens.shape[1] - sum(lengths)], dim=1)
