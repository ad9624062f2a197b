"""Which of a network's weights are quantized, and of all others their share and why not.

Weights are the numbers in parameters and stored floating-point buffers of two or more axes; what is
shared counts once. The reason is what the network does with a tensor, seen in one pass, not what
its module is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor, nn

from sq.core.progress import say
from sq.network import first_last
from sq.network.products import CONVOLUTIONS, LINEAR, Calls, run, tensors
from sq.types.problem import Layer, Model

SHOWN = 3  # names for each reason, in one line

ADDED = "added, not multiplied"
LOOKED_UP = "looked up, not multiplied"
JOINED = "joined to the inputs, not multiplied"
SCALE = "scales or shifts the inputs element by element"
CONSTANT = "constant input of a layer"
NORM = "scale or shift of a normalisation"
RECURRENT = "recurrent layer, not supported yet"
TRANSPOSED = "transposed convolution, not supported yet"
VOLUME = "3-D convolution, not supported yet"
OUTSIDE = "multiplied outside of a layer"
UNUSED = "not computed with in a pass (unused, or cached by the network)"
KEPT = "first or last layer, kept by ends=keep"

# Reason by function. Of several uses, the one that stands first here is told.
REASONS = {
    RECURRENT: (
        "lstm",
        "gru",
        "rnn_tanh",
        "rnn_relu",
        "lstm_cell",
        "gru_cell",
        "rnn_tanh_cell",
        "rnn_relu_cell",
    ),
    TRANSPOSED: ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    VOLUME: ("conv3d",),
    "projections inside of an attention function": (
        "multi_head_attention_forward",
        "_native_multi_head_attention",
    ),
    "layer of a fused function": ("_transformer_encoder_layer_fwd",),
    "bilinear, not weight times inputs": ("bilinear",),
    "multiplied, but its layer computes more than weight times inputs": (
        "linear",
        "conv1d",
        "conv2d",
    ),
    OUTSIDE: (
        "matmul",
        "__matmul__",
        "__rmatmul__",
        "mm",
        "bmm",
        "baddbmm",
        "addmm",
        "addbmm",
        "addmv",
        "mv",
        "einsum",
        "tensordot",
        "scaled_dot_product_attention",
    ),
    NORM: ("layer_norm", "group_norm", "batch_norm", "instance_norm", "rms_norm"),
    LOOKED_UP: ("embedding", "embedding_bag", "__getitem__", "index_select", "gather", "take"),
    JOINED: ("cat", "concat", "concatenate", "stack", "hstack", "vstack"),
    ADDED: (
        "add",
        "add_",
        "__add__",
        "__radd__",
        "__iadd__",
        "sub",
        "__sub__",
        "__rsub__",
        "sub_",
        "__isub__",
    ),
    "resampled, then added": ("interpolate", "grid_sample", "upsample"),
    SCALE: (
        "mul",
        "mul_",
        "__mul__",
        "__rmul__",
        "__imul__",
        "div",
        "__truediv__",
        "__rtruediv__",
        "prelu",
        "addcmul",
        "addcmul_",
    ),
    CONSTANT: ("input",),  # of a product, not its weight
}
# Functions that return the same numbers: what is done with their result is done with the tensor.
SAME = {
    "bfloat16", "broadcast_to", "clone", "contiguous", "detach", "expand", "expand_as",
    "flatten", "flip", "float", "half", "mT", "movedim", "permute", "repeat",
    "repeat_interleave", "reshape", "reshape_as", "roll", "squeeze", "swapaxes", "t",
    "tile", "to", "transpose", "type", "type_as", "unflatten", "unsqueeze", "view",
    "view_as",
}  # fmt: skip
SILENT = {
    "__get__",
    "dim",
    "numel",
    "size",
    "stride",
    "is_floating_point",
    "is_complex",
    "data_ptr",
    "__len__",
}


PRODUCTS = {LINEAR, *CONVOLUTIONS}


@dataclass(frozen=True)
class LeftOut:
    """A tensor that is not quantized: how many weights it has, their share (0 to 1), and why."""

    name: str
    weights: int
    share: float
    reason: str


@dataclass(frozen=True)
class Coverage:
    """How many weights a network has, how many are quantized, and all that are not."""

    weights: int
    quantized: int
    left_out: tuple[LeftOut, ...] = ()
    rewritten: tuple[str, ...] = ()  # modules that were rewritten to be quantized: ``name (what)``
    # modules of what is left out that could not be: ``name (reason)``
    refused: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Return the share of weights that is quantized, from 0 to 1; 1 if there are none."""
        return self.quantized / self.weights if self.weights else 1.0

    def reasons(self) -> dict[str, float]:
        """Return the share of weights that is left out for each reason, the largest first."""
        shares: dict[str, float] = {}
        for own in self.left_out:
            shares[own.reason] = shares.get(own.reason, 0.0) + own.share
        return dict(sorted(shares.items(), key=lambda item: -item[1]))

    def sentence(self) -> str:
        """Return in one line what is left out and why, "" if nothing is."""
        parts = []
        for reason, share in self.reasons().items():
            names = [own.name for own in self.left_out if own.reason == reason]
            parts.append(f"{percent(share)} {reason} ({listed(names)})")
        left = 1 - self.share
        return (
            f"{percent(left)} of the weights stay in full precision: {'; '.join(parts)}"
            if parts
            else ""
        )

    def record(self) -> dict[str, Any]:
        """Return plain data, for a record."""
        lists = {
            "left_out": [asdict(own) for own in self.left_out],
            "rewritten": list(self.rewritten),
            "refused": list(self.refused),
        }
        return {"weights": self.weights, "quantized": self.quantized, "share": self.share, **lists}


def of_model(whole: Model, policy: str, x: Tensor) -> Coverage:
    """Return what is quantized of a settled network; say what is rewritten and what is left out.

    Parameters
    ----------
    policy : of the first and last layer, see `sq.network.first_last`
    x : as for `measure`
    """
    layers = first_last.leave(whole, policy).layers
    names = {layer.name for layer in layers}
    kept = [layer for layer in whole.layers if layer.name not in names]
    covered = measure(whole.net, layers, x, kept, whole.rewritten)
    covered = replace(covered, refused=_to_blame(whole.refused, covered.left_out))
    if whole.rewritten:
        say(f"rewritten as plain layers: {listed(whole.rewritten)}")
    if covered.refused:
        say(f"not rewritten as plain layers: {listed(covered.refused)}")
    if covered.left_out:
        say(covered.sentence())
    return covered


def _to_blame(refused: Iterable[tuple[str, str]], left_out: Sequence[LeftOut]) -> tuple[str, ...]:
    """Return the modules that could not be rewritten and hold weights that are left out."""
    lines = []
    for name, reason in refused:
        beginning = f"{name}." if name else ""
        if any(own.name.startswith(beginning) for own in left_out):
            lines.append(f"{name} ({reason})")
    return tuple(lines)


def listed(names: Sequence[str]) -> str:
    """Return the first few of `names`, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


def percent(share: float) -> str:
    """Return a share in percent, with the digits that tell it from 0 and from 100."""
    if 0 < share < 1e-4:
        return "less than 0.01 %"
    text = f"{100 * share:.2f}"
    return f"{'99.99' if text == '100.00' and share < 1 else text} %"


def measure(
    net: nn.Module,
    quantized: Iterable[Layer],
    x: Tensor,
    kept: Iterable[Layer] = (),
    rewritten: Iterable[str] = (),
) -> Coverage:
    """Return which weights of `net` are those of `quantized` layers, and why the others are not.

    Parameters
    ----------
    net : in eval mode
    x : one or a few images as the network takes them; they are passed through the network if a
        weight is left out
    kept : layers that stay in full precision because the user says so
    rewritten : for the result
    """
    known = _matrices(net)
    covered = {id(layer.module.weight) for layer in quantized}
    wanted = {id(layer.module.weight) for layer in kept}
    total = sum(tensor.numel() for _, tensor in known.values())
    left = {key: own for key, own in known.items() if key not in covered}
    uses = _uses(net, x, [tensor for _, tensor in left.values()]) if left else {}
    found = []
    for key, (name, tensor) in left.items():
        reason = KEPT if key in wanted else _reason(uses[key])
        found.append(LeftOut(name, tensor.numel(), tensor.numel() / total, reason))
    found.sort(key=lambda own: -own.weights)
    done = total - sum(own.weights for own in found)
    return Coverage(total, done, tuple(found), tuple(rewritten))


def _matrices(net: nn.Module) -> dict[int, tuple[str, Tensor]]:
    """Return name and tensor of each parameter and stored buffer of two or more axes, by id."""
    known: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in net.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and tensor.ndim > 1 and tensor.is_floating_point():
            known.setdefault(id(tensor), (name, tensor))
    for name, parameter in net.named_parameters():  # a module may leave some out of its state
        if parameter.ndim > 1:
            known.setdefault(id(parameter), (name, parameter))
    return known


def _uses(net: nn.Module, x: Tensor, wanted: list[Tensor]) -> dict[int, set[str]]:
    """Return the names of the functions that get each tensor, or a view of it, by id."""
    uses: dict[int, set[str]] = {id(tensor): set() for tensor in wanted}
    origin: dict[int, int] = {id(tensor): id(tensor) for tensor in wanted}
    views: list[Tensor] = []  # kept, so that none takes the identity of another

    def see(
        func: Callable[..., Any], args: tuple[Any, ...], named: Mapping[str, Any], result: Any
    ) -> None:
        name = getattr(func, "__name__", "")
        if name in SILENT and not isinstance(result, Tensor):
            return
        sources = {origin[id(own)] for own in tensors([args, dict(named)]) if id(own) in origin}
        for source in sources:
            if isinstance(result, Tensor) and (name in SAME or name in SILENT):
                origin[id(result)] = source
                views.append(result)
            elif func in PRODUCTS and source == origin.get(id(args[0] if args else named["input"])):
                uses[source].add("input")
            else:
                uses[source].add(name)

    with Calls(see):
        run(net, x)
    return uses


def _reason(functions: set[str]) -> str:
    if not functions:
        return UNUSED
    for reason, names in REASONS.items():
        if not functions.isdisjoint(names):
            return reason
    return f"computed with by {', '.join(sorted(functions)[:2])}"
