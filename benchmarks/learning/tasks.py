"""The tasks, the models and the ablations of the comparison, as data."""

from dataclasses import dataclass, field

MEGALODON, MEGA, TRANSFORMER = "megalodon", "mega", "transformer"
VALIDATIONS = 8  # of a run: the points of its learning curve


@dataclass(frozen=True)
class Model:
    """One model of the comparison.

    architecture: the first word of its names in fairseq.  chunked: whether its attention stays inside
    chunks of ``Task.chunk`` steps.
    """

    title: str
    architecture: str
    chunked: bool = False


MODELS = {
    "megalodon": Model("Megalodon", MEGALODON),
    "megalodon-chunk": Model("Megalodon-chunk", MEGALODON, chunked=True),
    "mega": Model("Mega", MEGA),
    "mega-chunk": Model("Mega-chunk", MEGA, chunked=True),
    "transformer": Model("Transformer", TRANSFORMER),
}

# What is taken away from Megalodon with full attention, one idea at a time: name -> field and value.
ABLATIONS = {
    "real EMA": ("model.moving_average", "real"),
    "no EMA": ("model.moving_average", "none"),
    "layer norm": ("model.norm_type", "layer"),
    "scaled scores": ("model.attention_scores", "scaled"),
    "plain residual": ("model.residual", "plain"),
}


@dataclass(frozen=True)
class Task:
    """One data set, and how long and how large the models are on it.

    recipe: whose demo has data, sizes and settings.  preset: the end of the models' names in fairseq.
    rate: the largest learning rate of the grid, twice that of the demo.  updates, warmup: those of the
    demo.  chunk: steps.  positions: the farthest distance that Mega has a bias for.  mega_ffn_dims: the
    widths at which Mega, with full and with chunked attention, has as many parameters as Megalodon; a
    Transformer has by itself.  settings: fields of all models that differ from the demo's.  preparation:
    options of ``megalodon prepare`` where the data is not the demo's.  models: keys of ``MODELS``.
    trained_length: the longest sequence of training, where other lengths are evaluated too.
    """

    title: str
    recipe: str
    preset: str
    rate: float
    updates: int
    warmup: int
    chunk: int
    positions: int = 0
    mega_ffn_dims: tuple[int, int] = (0, 0)
    settings: dict[str, str] = field(default_factory=dict)
    preparation: str = ""
    models: tuple[str, ...] = tuple(MODELS)
    trained_length: int | None = None

    def overrides(self, name: str, scale: float = 1.0) -> dict[str, str]:
        """Return the settings of all runs of the model ``name``, or of Megalodon without an idea.

        scale: the share of the updates of the demo.
        """
        model = MODELS.get(name, MODELS["megalodon"])
        updates = round(self.updates * scale)
        fields = {
            "model._name": f"{model.architecture}_{self.preset}",
            "model.chunk_size": str(self.chunk) if model.chunked else "null",
            "optimization.max_update": str(updates),
            "lr_scheduler.warmup_updates": str(round(self.warmup * scale)),
            "dataset.validate_interval_updates": str(max(1, updates // VALIDATIONS)),
            "dataset.validate_interval": "1000",  # not by epoch
            **self.settings,
        }
        if model.architecture == MEGA:
            fields["model.ffn_hidden_dim"] = str(self.mega_ffn_dims[model.chunked])
            if not model.chunked:
                fields["model.max_positions"] = str(self.positions)
        if name in ABLATIONS:
            ablated, value = ABLATIONS[name]
            fields[ablated] = value
        return fields


TASKS = {
    "listops": Task(
        "ListOps, 9 to 61 symbols",
        "lra/listops",
        "lra_listops",
        rate=0.008,
        updates=1250,
        warmup=200,
        chunk=32,
        positions=512,
        mega_ffn_dims=(120, 128),
        trained_length=61,
    ),
    "pathfinder": Task(
        "Pathfinder, 14 x 14 pixels",
        "lra/pathfinder",
        "lra_pathfinder",
        rate=0.008,
        updates=1050,
        warmup=150,
        chunk=56,
        positions=196,
        mega_ffn_dims=(56, 60),
    ),
    "digits": Task(
        "Digits, 8 x 8 pixels",
        "lra/image",
        "lra_image",
        rate=0.02,
        updates=760,
        warmup=100,
        chunk=32,
        positions=64,
        mega_ffn_dims=(92, 96),
    ),
    "text": Task(
        "Text, passages of 256 bytes",
        "lra/text",
        "lra_text",
        rate=0.008,
        updates=444,
        warmup=100,
        chunk=64,
        positions=257,
        mega_ffn_dims=(92, 96),
    ),
    "retrieval": Task(
        "Retrieval, pairs of 128 bytes",
        "lra/retrieval",
        "lra_retrieval",
        rate=0.008,
        updates=376,
        warmup=50,
        chunk=64,
        positions=129,
        mega_ffn_dims=(96, 96),
    ),
    "listops-500": Task(
        "ListOps, 100 to 500 symbols",
        "lra/listops",
        "lra_listops",
        rate=0.008,
        updates=1250,
        warmup=200,
        chunk=128,
        positions=512,
        mega_ffn_dims=(120, 124),
        settings={"task.max_positions": "502"},
        preparation="--generate --train 20000 --valid 500 --test 1000 --min-length 100 "
        "--max-length 500 --max-depth 10 --max-args 10",
    ),
    "pathfinder-32": Task(
        "Pathfinder, 32 x 32 pixels, easy",
        "lra/pathfinder",
        "lra_pathfinder",
        rate=0.008,
        updates=1050,
        warmup=150,
        chunk=128,
        positions=1024,
        mega_ffn_dims=(32, 60),
        settings={"task.max_positions": "1024"},
        preparation="--generate --difficulty easy --count 24000 --distinct",
    ),
    "words": Task(
        "Spoken words, 2,000 samples",
        "speech/sc_raw",
        "sc_raw_base",
        rate=0.02,
        updates=360,
        warmup=50,
        chunk=100,
        positions=2000,
        mega_ffn_dims=(
            0,
            44,
        ),  # with full attention the bias of 2,000 steps is too large for equal size
        models=("megalodon-chunk", "mega-chunk", "transformer"),
    ),
    "documentation": Task(
        "Bytes of documentation",
        "lm/enwik8",
        "lm_enwik8",
        rate=0.012,
        updates=600,
        warmup=50,
        chunk=512,
        models=("megalodon-chunk", "transformer"),
        settings={"task.tokens_per_sample": "512"},
        trained_length=1536,
    ),
}
