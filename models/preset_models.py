"""A model class and a configuration class for each named preset."""

from collections.abc import Callable
from dataclasses import field, fields, make_dataclass

Register = Callable[..., Callable[[type], type]]


def register_presets(
    presets: dict[str, dict[str, object]], config: type, model: type, register: Register
) -> None:
    """Register each preset by ``register(name, dataclass=...)`` as a model of its own name.

    fairseq applies the sizes behind an ``--arch`` name only on the command line; for ``model._name`` in
    a YAML it silently builds the base model.  A subclass of ``config`` (a dataclass) that has the
    preset's sizes as defaults, and one of ``model`` that goes with it, are read alike in both ways.
    """
    known = {f.name: f for f in fields(config)}
    for name, sizes in presets.items():
        changed = [
            (key, known[key].type, field(default=value, metadata=known[key].metadata))
            for key, value in sizes.items()
        ]
        sized = make_dataclass(f"Config_{name}", changed, bases=(config,))
        register(name, dataclass=sized)(
            type(f"Model_{name}", (model,), {"__module__": model.__module__})
        )
