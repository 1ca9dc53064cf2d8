"""Megalodon language models for transformers.

Importing this package registers configuration, model and tokenizer with transformers' ``Auto`` classes,
which then load a folder that ``megalodon convert to-hf`` wrote, without remote code.  transformers looks
for no plug-ins of installed packages, so the import must be written.
"""

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from megalodon_tasks.hf.configuration import MegalodonHFConfig
from megalodon_tasks.hf.modeling import MegalodonForCausalLM
from megalodon_tasks.hf.tokenization import MegalodonTokenizer

AutoConfig.register(MegalodonHFConfig.model_type, MegalodonHFConfig)
AutoModelForCausalLM.register(MegalodonHFConfig, MegalodonForCausalLM)
AutoTokenizer.register(MegalodonHFConfig, MegalodonTokenizer)
