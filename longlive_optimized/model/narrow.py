"""Networks whose layers' weights may be held in 8 bits."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence

from torch import nn

from ..kernels.int8_linear import PACK
from .config import ModelConfig
from .linear import Linear
from .precision import Parts


class NarrowNetwork(nn.Module):
    """A network of transformer layers, of whose weights there may be int8 copies, or nothing else.

    ``int8_linears`` names those weights, as ``precision.policy_of`` does.
    """

    config: ModelConfig

    @abstractmethod
    def int8_linears(self) -> Iterator[Linear]:
        """The linears that 8-bit precisions run in 8 bits."""

    @property
    def holds_int8(self) -> bool:
        """Whether there are int8 copies of the weights that ``precision.policy_of`` names."""
        return all(linear.int8_weight is not None for linear in self.int8_linears())

    def hold_int8(self) -> None:
        """Make int8 copies of the weights that run in 8 bits. They lie beside the weights, and stay.

        Raises ValueError for a network whose widths int8 products do not take. If that or memory fails, there are none.
        """
        if self.holds_int8:
            return
        self._check_widths("precision must be bf16")
        try:
            for linear in self.int8_linears():
                linear.quantize_weight()
        except BaseException:
            for linear in self.int8_linears():
                linear.drop_int8()
            raise

    def hold_int8_only(self) -> None:
        """Give the weights back of which there are int8 copies, as if made with ``int8_only``. Passes that were
        captured read what is no longer there."""
        for linear in self.int8_linears():
            linear.drop_weight()

    def weights_changed(self) -> None:
        """The weights are others: quantise them anew, in place, if there are int8 copies of them."""
        if self.holds_int8:
            for linear in self.int8_linears():
                linear.quantize_weight()

    def _check_widths(self, wanted: str) -> None:
        widths = {"dim": self.config.dim, "ffn_dim": self.config.ffn_dim}
        if wrong := [f"{name} {width}" for name, width in widths.items() if width % PACK]:
            raise ValueError(f"{wanted}: int8 wants multiples of {PACK}, the model has {', '.join(wrong)}")


def linears_in_int8(layers: Sequence[nn.Module], parts: Sequence[Parts]) -> Iterator[Linear]:
    """Those of each layer that its parts name."""
    for layer, of_layer in zip(layers, parts, strict=True):
        yield from (getattr(layer, name) for name, int8 in of_layer._asdict().items() if int8)
