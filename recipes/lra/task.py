"""Tasks of the Long Range Arena (arXiv 2011.04006)."""

from fairseq.tasks import register_task

from megalodon_tasks.classification import ClassificationConfig, ClassificationTask


@register_task("lra_text", dataclass=ClassificationConfig)
class LraTextTask(ClassificationTask):
    """Classify sequences of symbols: ListOps (17 tokens, 10 classes)."""

    prepare_commands = {
        "listops": "python -m megalodon_tasks.recipes.lra.prepare_listops SOURCE {data}",
    }
