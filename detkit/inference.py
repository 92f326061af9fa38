"""Networks made fast to use: batch norm folded, channels last, lower precision, compiled, recorded as a CUDA graph."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from detkit.backbones.norm import DarknetNorm
from detkit.detectors.base import Detector
from detkit.errors import DetkitError

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_MOST_GRAPHS = 8  # each keeps all that the network writes


def choose_device(name: str) -> torch.device:
    """Return the device of that name; `auto` is the GPU where there is one. Raises DetkitError where there is none."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DetkitError(f"--device {name}: expected auto, cpu, cuda or cuda:<number>") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise DetkitError(
                f"--device {name}: this machine has {count or 'no'} CUDA device{'s' * (count > 1)}; use --device cpu"
            )
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise DetkitError(f"--device {name}: this machine has no Metal device; use --device cpu")
    elif device.type not in ("cpu", "mps"):
        raise DetkitError(f"--device {name}: expected auto, cpu, cuda or cuda:<number>")
    return device


def require_precision(precision: str, device: torch.device) -> None:
    """Raise DetkitError when there is no such precision, or the device does not compute in it."""
    if precision not in DTYPES:
        raise DetkitError(f"precision {precision!r}: expected {', '.join(DTYPES)}")
    if precision == "fp16" and device.type == "cpu":  # which emulates it, several times slower than fp32
        raise DetkitError("--precision fp16: needs a GPU; on the CPU use bf16 or fp32")
    if precision == "bf16" and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        raise DetkitError(f"--precision bf16: {torch.cuda.get_device_name(device)} does not have it; use fp16 or fp32")


def for_inference(network: nn.Module, device: torch.device, precision: Precision = "fp32") -> None:
    """Prepare a network, in place, to run fast: batch norm folded, channels last, convolutions in the precision."""
    fold_batch_norm(network)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if precision != "fp32":
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                module.to(DTYPES[precision])


# ----------------------------------------------------------------------------------------------------------------------
# Folded batch norm


def fold_batch_norm(network: nn.Module) -> None:
    """Fold each batch norm that follows a convolution into that convolution, in place.

    One follows the other in a Sequential, and in timm's models where autograd's graph shows that the batch norm alone
    reads what the convolution writes.
    """
    network.eval()
    for module in list(network.modules()):
        if isinstance(module, nn.Sequential):
            _fold(module, list(pairwise(module)))
        elif isinstance(images := getattr(module, "example", None), Tensor) and _norms(module):
            _fold(module, list(_followed(module, images)))


def _norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def _fold(network: nn.Module, pairs: Sequence[tuple[nn.Module, nn.Module]]) -> None:
    names = {module: name for name, module in network.named_modules()}
    for conv, norm in pairs:
        rest = _what_remains(norm)
        hooks = conv._forward_hooks or norm._forward_hooks or norm._forward_pre_hooks  # timm's take maps there
        if rest is None or hooks or not isinstance(conv, nn.Conv2d):
            continue
        assert isinstance(norm, nn.BatchNorm2d)
        plain = norm.plain() if isinstance(norm, DarknetNorm) else norm
        network.set_submodule(names[conv], fuse_conv_bn_eval(conv, plain))
        network.set_submodule(names[norm], rest)


def _what_remains(norm: nn.Module) -> nn.Module | None:
    """What a batch norm does besides normalizing; None of modules that are none, or of an unknown kind."""
    if type(norm) in (nn.BatchNorm2d, DarknetNorm):
        return nn.Identity()
    if type(norm).__name__ == "BatchNormAct2d":  # timm's, which is not imported for it
        return nn.Sequential(norm.drop, norm.act)  # type: ignore[arg-type]
    return None


def _followed(network: nn.Module, images: Tensor) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Yield each convolution that runs once and whose output a batch norm alone reads, with that batch norm."""
    owner = {id(weight): module for module in network.modules() for weight in module.parameters(recurse=False)}
    with torch.enable_grad():
        waiting = [x.grad_fn for x in network(images) if x.grad_fn is not None]
    readers: dict[Any, list[Any]] = defaultdict(list, {node: [None] for node in waiting})
    runs: dict[nn.Module, list[Any]] = defaultdict(list)
    seen = set()
    while waiting:
        node: Any = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        inputs = [parent for parent, _ in node.next_functions]
        if len(inputs) > 1 and (module := owner.get(id(getattr(inputs[1], "variable", None)))) is not None:
            runs[module].append(node)  # the second input of a convolution and of a batch norm is its weight
        for parent in filter(None, inputs):
            readers[parent].append(node)
            waiting.append(parent)
    whose = {nodes[0]: module for module, nodes in runs.items() if len(nodes) == 1}
    for node, module in whose.items():
        following = whose.get(readers[node][0]) if len(readers[node]) == 1 else None
        if isinstance(following, nn.BatchNorm2d):
            yield module, following


# ----------------------------------------------------------------------------------------------------------------------
# Compiled and recorded


def compile_forward(detector: Detector, one_size: bool) -> None:
    """Let torch.compile make the code of `forward`, at its first call; one_size: all batches have the same shape.

    That call raises DetkitError when the code cannot be made, as without a C++ compiler on a CPU.
    """
    compiled = torch.compile(detector.forward, dynamic=not one_size)

    def forward(*inputs: Tensor) -> Any:
        try:
            return compiled(*inputs)
        except TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            raise DetkitError(f"--compile: the network's code cannot be made ({reason}); leave it out") from error

    from torch._dynamo.exc import TorchDynamoException  # seconds, if nothing is compiled

    detector.forward = forward  # type: ignore[assignment, method-assign]


def record_forward(detector: Detector, device: torch.device) -> None:
    """Record the kernels of `forward` as a CUDA graph for each shape of a batch; raises DetkitError without CUDA."""
    if device.type != "cuda":
        raise DetkitError(f"--cuda-graphs: needs a CUDA device, and the model is on the {device.type}; leave it out")
    detector.forward = Recorded(detector.forward)  # type: ignore[assignment, method-assign]


class Recorded:
    """A forward whose kernels are recorded once for each shape of its inputs, and launched together from then on.

    What it returns is overwritten by the next call of the same shape. At most eight shapes are recorded; others run as
    they are.
    """

    def __init__(self, forward: Callable[..., Any]) -> None:
        self._forward = forward
        self._graphs: dict[tuple[Any, ...], tuple[Any, tuple[Tensor, ...], Any]] = {}

    def __call__(self, *inputs: Tensor) -> Any:
        """Return what forward returns."""
        shapes = tuple((tuple(x.shape), x.dtype) for x in inputs)
        if shapes not in self._graphs:
            if len(self._graphs) == _MOST_GRAPHS:
                return self._forward(*inputs)
            self._graphs[shapes] = self._record(inputs)
        graph, own, outputs = self._graphs[shapes]
        for to, new in zip(own, inputs, strict=True):
            to.copy_(new, non_blocking=True)
        graph.replay()
        return outputs

    def _record(self, inputs: tuple[Tensor, ...]) -> tuple[Any, tuple[Tensor, ...], Any]:
        own = tuple(x.clone() for x in inputs)
        graph = torch.cuda.CUDAGraph()
        lower = torch.is_autocast_enabled("cuda")
        with (
            torch.cuda.device(own[0].device),
            # What autocast keeps of weights in lower precision would be freed when it ends, and read by the graph.
            torch.autocast("cuda", torch.get_autocast_dtype("cuda"), lower, cache_enabled=False),
        ):
            beside, current = torch.cuda.Stream(), torch.cuda.current_stream()
            beside.wait_stream(current)
            with torch.cuda.stream(beside):
                for _ in range(3):  # what libraries choose and allocate at first
                    self._forward(*own)
            current.wait_stream(beside)
            try:
                # Another thread may allocate memory for the next batch meanwhile.
                with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                    outputs = self._forward(*own)
            except RuntimeError as error:
                raise DetkitError(
                    f"--cuda-graphs: this network cannot be recorded ({str(error).splitlines()[0]}); leave it out"
                ) from error
        return graph, own, outputs
