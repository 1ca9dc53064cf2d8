"""Import everything that registers itself with fairseq, after patching fairseq."""

from megalodon_tasks import fairseq_compat

# Before any other import of fairseq: some patches must be in place when it is loaded.
fairseq_compat.install()

from megalodon_tasks.criterions import classification  # noqa: E402, F401
from megalodon_tasks.models import (  # noqa: E402, F401
    fairseq_encoder,
    fairseq_mega,
    fairseq_models,
    fairseq_seq2seq,
    fairseq_transformer,
)
from megalodon_tasks.recipes.imagenet import schedule  # noqa: E402, F401
from megalodon_tasks.recipes.imagenet import task as imagenet_task  # noqa: E402, F401
from megalodon_tasks.recipes.lm import task as lm_task  # noqa: E402, F401
from megalodon_tasks.recipes.lra import task  # noqa: E402, F401
from megalodon_tasks.recipes.speech import task as speech_task  # noqa: E402, F401
from megalodon_tasks.training import checked_pairs, effective_batch, fully_sharded, recorder, trace  # noqa: E402
from megalodon_tasks.training import optimizer as optim  # noqa: E402, F401

checked_pairs.install()
effective_batch.install()
fully_sharded.install()
recorder.install()
trace.install()
