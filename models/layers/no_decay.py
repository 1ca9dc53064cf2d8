"""Parameters that take no weight decay carry a tag; here is what keeps it on them."""

from typing import Any, ClassVar

from torch import nn

NO_WEIGHT_DECAY = "no_weight_decay"


class WithoutDecay(nn.Module):
    """Tag the parameters named in ``undecayed`` with ``param_group = "no_weight_decay"``.

    Optimizers with parameter groups do not decay them.  PyTorch drops attributes of a parameter when it
    copies, unpickles, moves, or assigns one, so each of these is followed by tagging it again.
    """

    undecayed: ClassVar[tuple[str, ...]] = ()

    def tag(self) -> None:
        """Tag the parameters that there are now."""
        for name in self.undecayed:
            parameter = self._parameters.get(name)
            if parameter is not None:
                parameter.param_group = NO_WEIGHT_DECAY

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Register a parameter, as attributes of a module are when they are set."""
        super().register_parameter(name, param)
        self.tag()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copied or unpickled module."""
        super().__setstate__(state)
        self.tag()

    def _apply(self, *args: Any, **options: Any) -> nn.Module:
        module = super()._apply(*args, **options)
        self.tag()
        return module

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.tag()
