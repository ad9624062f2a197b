"""Which weights of a network are quantized; of the others, their share and the reason.

Weights are the elements of parameters and stored floating-point buffers with two or more axes; a
shared tensor counts once. The reason is what the network does with a tensor in one pass, not the
name of its module.
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

SHOWN_NAMES = 3  # for each reason, in one line

# Reasons. Records hold these texts.
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
KEPT_BY_USER = "first or last layer, kept by ends=keep"

# The functions behind each reason, by name. Of several uses of a tensor, the first in this order is
# reported.
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
    CONSTANT: ("input",),  # our name for the input of a product, which is not its weight
}
# Functions that return the same values in another layout or precision: uses of their result are
# uses of the tensor.
LAYOUT_FUNCTIONS = {
    "bfloat16", "broadcast_to", "clone", "contiguous", "detach", "expand", "expand_as",
    "flatten", "flip", "float", "half", "mT", "movedim", "permute", "repeat",
    "repeat_interleave", "reshape", "reshape_as", "roll", "squeeze", "swapaxes", "t",
    "tile", "to", "transpose", "type", "type_as", "unflatten", "unsqueeze", "view",
    "view_as",
}  # fmt: skip
# Functions that read attributes of a tensor, which is no use of its values.
ATTRIBUTE_FUNCTIONS = {
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
    """A tensor that is not quantized: its number of weights, their share (0 to 1), and why."""

    name: str
    weights: int
    share: float
    reason: str


@dataclass(frozen=True)
class Coverage:
    """How many weights a network has, how many are quantized, and the tensors that are not."""

    weights: int
    quantized: int
    left_out: tuple[LeftOut, ...] = ()
    # Modules that were rewritten as plain layers: ``name (what)``.
    rewritten: tuple[str, ...] = ()
    # Modules with weights that are left out and that could not be rewritten: ``name (reason)``.
    refused: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Return the share of weights that is quantized, from 0 to 1; 1 if there are none."""
        return self.quantized / self.weights if self.weights else 1.0

    def reasons(self) -> dict[str, float]:
        """Return the share of weights that is left out for each reason, the largest first."""
        shares: dict[str, float] = {}
        for tensor in self.left_out:
            shares[tensor.reason] = shares.get(tensor.reason, 0.0) + tensor.share
        return dict(sorted(shares.items(), key=lambda item: -item[1]))

    def sentence(self) -> str:
        """Return one line on what is left out and why, "" if nothing is."""
        if not self.left_out:
            return ""
        parts = []
        for reason, share in self.reasons().items():
            names = [tensor.name for tensor in self.left_out if tensor.reason == reason]
            parts.append(f"{percent(share)} {reason} ({listed(names)})")
        unquantized = percent(1 - self.share)
        return f"{unquantized} of the weights stay in full precision: {'; '.join(parts)}"

    def record(self) -> dict[str, Any]:
        """Return plain data, for a record."""
        return {
            "weights": self.weights,
            "quantized": self.quantized,
            "share": self.share,
            "left_out": [asdict(tensor) for tensor in self.left_out],
            "rewritten": list(self.rewritten),
            "refused": list(self.refused),
        }


def of_model(model: Model, policy: str, x: Tensor) -> Coverage:
    """Return the coverage of a traced network, and report what is rewritten and left out.

    Parameters
    ----------
    model : with all its layers
    policy : of the first and last layer, see `sq.network.first_last`
    x : as for `measure`
    """
    quantized = first_last.without_kept_layers(model, policy).layers
    names = {layer.name for layer in quantized}
    by_user = [layer for layer in model.layers if layer.name not in names]
    coverage = measure(model.net, quantized, x, by_user, model.rewritten)
    coverage = replace(coverage, refused=_refused_modules(model.refused, coverage.left_out))
    if model.rewritten:
        say(f"rewritten as plain layers: {listed(model.rewritten)}")
    if coverage.refused:
        say(f"not rewritten as plain layers: {listed(coverage.refused)}")
    if coverage.left_out:
        say(coverage.sentence())
    return coverage


def _refused_modules(
    refused: Iterable[tuple[str, str]], left_out: Sequence[LeftOut]
) -> tuple[str, ...]:
    """Return the modules that could not be rewritten and hold weights that are left out."""
    lines = []
    for name, reason in refused:
        prefix = f"{name}." if name else ""
        if any(tensor.name.startswith(prefix) for tensor in left_out):
            lines.append(f"{name} ({reason})")
    return tuple(lines)


def listed(names: Sequence[str]) -> str:
    """Return the first few of `names`, and how many more there are."""
    shown = ", ".join(names[:SHOWN_NAMES])
    if len(names) > SHOWN_NAMES:
        shown += f" and {len(names) - SHOWN_NAMES} more"
    return shown


def percent(share: float) -> str:
    """Return a share in percent, rounded such that it is neither 0 nor 100 unless it is exactly."""
    if 0 < share < 1e-4:
        return "less than 0.01 %"
    text = f"{100 * share:.2f}"
    if text == "100.00" and share < 1:
        text = "99.99"
    return f"{text} %"


def measure(
    net: nn.Module,
    quantized: Iterable[Layer],
    x: Tensor,
    kept_by_user: Iterable[Layer] = (),
    rewritten: Iterable[str] = (),
) -> Coverage:
    """Return which weights of `net` are those of `quantized` layers, and why the others are not.

    Parameters
    ----------
    net : in eval mode
    x : one or a few images as the network takes them; run only if a weight is left out
    kept_by_user : layers that stay in full precision because the user says so
    rewritten : for the result
    """
    matrices = _matrices(net)
    quantized_ids = {id(layer.module.weight) for layer in quantized}
    kept_ids = {id(layer.module.weight) for layer in kept_by_user}
    total = sum(tensor.numel() for _, tensor in matrices.values())
    remaining = {key: entry for key, entry in matrices.items() if key not in quantized_ids}
    uses: dict[int, set[str]] = {}
    if remaining:
        uses = _uses(net, x, [tensor for _, tensor in remaining.values()])
    left_out = []
    for key, (name, tensor) in remaining.items():
        reason = KEPT_BY_USER if key in kept_ids else _reason(uses[key])
        left_out.append(LeftOut(name, tensor.numel(), tensor.numel() / total, reason))
    left_out.sort(key=lambda tensor: -tensor.weights)
    covered = total - sum(tensor.weights for tensor in left_out)
    return Coverage(total, covered, tuple(left_out), tuple(rewritten))


def _matrices(net: nn.Module) -> dict[int, tuple[str, Tensor]]:
    """Return name and tensor of each parameter and stored buffer of two or more axes, by id."""
    matrices: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in net.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and tensor.ndim > 1 and tensor.is_floating_point():
            matrices.setdefault(id(tensor), (name, tensor))
    for name, parameter in net.named_parameters():  # a module may leave some out of its state
        if parameter.ndim > 1:
            matrices.setdefault(id(parameter), (name, parameter))
    return matrices


def _uses(net: nn.Module, x: Tensor, weights: list[Tensor]) -> dict[int, set[str]]:
    """Return the names of the functions that take each tensor, or a view of it, by its id."""
    uses: dict[int, set[str]] = {}
    # Of each tensor and view, by id: the id of the tensor it comes from.
    origin: dict[int, int] = {}
    for tensor in weights:
        uses[id(tensor)] = set()
        origin[id(tensor)] = id(tensor)
    views: list[Tensor] = []  # referenced here, so that no other tensor gets the same id

    def record(
        func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
    ) -> None:
        name = getattr(func, "__name__", "")
        if name in ATTRIBUTE_FUNCTIONS and not isinstance(result, Tensor):
            return
        is_view = isinstance(result, Tensor) and (
            name in LAYOUT_FUNCTIONS or name in ATTRIBUTE_FUNCTIONS
        )
        operands = tensors([args, dict(kwargs)])
        sources = {origin[id(operand)] for operand in operands if id(operand) in origin}
        for source in sources:
            if is_view:
                origin[id(result)] = source
                views.append(result)
            elif func in PRODUCTS and source == origin.get(
                id(args[0] if args else kwargs["input"])
            ):
                uses[source].add("input")
            else:
                uses[source].add(name)

    with Calls(record):
        run(net, x)
    return uses


def _reason(functions: set[str]) -> str:
    """Return why a tensor with these uses is not quantized."""
    if not functions:
        return UNUSED
    for reason, names in REASONS.items():
        if not functions.isdisjoint(names):
            return reason
    return f"computed with by {', '.join(sorted(functions)[:2])}"
