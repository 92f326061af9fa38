"""Any model of timm (https://github.com/huggingface/pytorch-image-models) as a backbone.

Networks with stages give their own maps. A plain transformer has one map; a simple feature pyramid makes the others.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import timm
import torch
from timm.models.vgg import VGG
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from detkit.backbones.base import Backbone, cut_to_cells, to_whole_cells
from detkit.backbones.positions import WithTokens, loosen, run_at_any_size
from detkit.errors import DetkitError, nearest
from detkit.necks.simple_pyramid import SimpleFeaturePyramid

# MViTv2 reads its tables at computed indices; whether these stay inside shows only with real numbers.
_SIZE_IS_FIXED = ("mvitv2_",)

_VGG = {"classifier.0": "pre_logits.fc1", "classifier.3": "pre_logits.fc2", "classifier.6": "head.fc"}

MISFIT = (AssertionError, RuntimeError, ValueError, TypeError, IndexError)
"""What timm's models raise when a picture does not fit them, or an argument is not theirs."""


class TimmBackbone(Backbone):
    """The maps of a timm model at the wanted strides, finest first; the stages behind the last of them are left out.

    name: as timm lists it, with or without the tag of its weights. pretrained: download those weights. size_hw:
    (height, width) of the pictures, by default the model's own, rounded up to whole cells; a model whose position
    tables are fixed is built for it and takes no other. A picture of no whole cells is padded right and below, behind
    normalisation, and the maps are cut to ⌈H / stride⌉ × ⌈W / stride⌉ cells. drop_path: the rate of its stochastic
    depth. A plain transformer whose patch is no power of two (14) gets the next one (16), its weights resampled
    (FlexiViT, Beyer et al., 2022, arXiv 2212.08013). Raises DetkitError for an unknown name, a stride or a picture size
    that the model does not have, and weights that cannot be had.
    """

    def __init__(
        self,
        name: str,
        pretrained: bool = False,
        strides: Sequence[int] = (8, 16, 32),
        size_hw: tuple[int, int] | None = None,
        drop_path: float = 0,
    ) -> None:
        super().__init__()
        check_name(name, pretrained)
        self.name = name
        self.strides = tuple(sorted(strides))
        draft, patch = _draft_with_patch(name)
        own_size = draft.pretrained_cfg["input_size"][1:]
        self.step = max(32, *self.strides)  # pictures of multiples of this fit every level
        height, width = size_hw or own_size
        self.size_hw = _round_up(height, self.step), _round_up(width, self.step)

        info = draft.feature_info
        levels = _levels(name, info.reduction(), self.strides)
        options, self.any_size, unused = _fit(name, draft, patch, levels, self.size_hw, self.step, own_size)
        if drop_path:
            options = _with_drop_path(name, options, drop_path)
        self._options = options
        self.model = _create(name, pretrained, options, tuple(info.out_indices[level] for level in levels))
        for key, parameter in self.model.named_parameters():
            if key in unused:
                parameter.requires_grad_(False)
        self.mean, self.std = (tuple(self.model.pretrained_cfg[key]) for key in ("mean", "std"))
        if self.class_tokens:
            self.model = WithTokens(self.model)
        self.channels = tuple(info.channels()[level] for level in levels)
        strides_own = tuple(info.reduction()[level] for level in levels)
        self.pyramid: SimpleFeaturePyramid | None = None
        if self.strides != strides_own:
            try:
                self.pyramid = SimpleFeaturePyramid(self.channels[0], strides_own[0], self.strides)
            except ValueError as error:
                raise DetkitError(f"backbone.name: timm/{name} has {error}") from None
            self.channels = self.pyramid.channels

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] → one map per stride, finest first."""
        maps = run_at_any_size(self.model, self._whole_cells(images))
        if self.class_tokens:
            maps = [x for x, _ in maps]
        if _is_nhwc(self.model):
            maps = [x.permute(0, 3, 1, 2) for x in maps]
        levels = self.pyramid(maps[0]) if self.pyramid is not None else maps
        return cut_to_cells(levels, self.strides, images.shape[-2:])

    def _whole_cells(self, images: Tensor) -> Tensor:
        """Pad pictures to whole cells; raises DetkitError where the model does not take their size."""
        padded = to_whole_cells(images, self.step)
        if not self.any_size and tuple(padded.shape[-2:]) != self.size_hw:
            raise DetkitError(
                f"timm/{self.name} takes only pictures of the size it was built for, {by(self.size_hw)}, got "
                f"{by(images.shape[-2:])}; build it for that size (preprocess.size) or take another model"
            )
        return padded

    @property
    def example(self) -> Tensor:
        """A picture [1, 3, H, W] that the model takes, small where it takes any, to see how its layers connect."""
        height, width = (2 * self.step, 2 * self.step) if self.any_size else self.size_hw
        return torch.zeros(1, 3, height, width)

    def taken_from(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As for every backbone, or of the whole model, under the names that timm or the model's authors gave them.

        timm then converts names, and positions and patches of another size, as where it loads weights itself.
        """
        own = super().taken_from(tensors)
        if all(name in own or name.startswith("pyramid.") for name in self.state_dict()):
            return own
        whole = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
        with torch.device("meta"), Unfilled():
            draft = timm.create_model(self.name, **self._options)
        whole = under_timms_names(self.name, whole, draft)
        whole |= {
            name.replace(".", "_", 1): tensor for name, tensor in whole.items()
        }  # stages_0 of stages.0 in pyramids
        plain = {name: name.removeprefix("model.").removeprefix("model.") for name in self.state_dict()}
        return {name: whole[theirs] for name, theirs in plain.items() if theirs in whole}

    @property
    def class_tokens(self) -> int:
        """How many tokens of a plain transformer stand for the picture: 0, 1, or 2 with the one of distillation."""
        plain = getattr(self.model, "model", None)
        tokens = [getattr(plain, name, None) for name in ("cls_token", "dist_token")]
        return sum(token is not None for token in tokens) if hasattr(plain, "num_prefix_tokens") else 0

    def tokens(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] → a plain transformer's class tokens behind its last block [B, `class_tokens`, C]."""
        tokens: Tensor = run_at_any_size(self.model, self._whole_cells(images))[-1][1]
        return tokens[:, : self.class_tokens]  # registers come after them


def check_name(name: str, pretrained: bool) -> None:
    """Raise DetkitError where timm has no model of that name, or is to download weights that it has not."""
    if ":" in name or not timm.is_model(name):
        raise DetkitError(f"backbone.name: timm has no model {name!r}{nearest(name, timm.list_models())}")
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError:
        architecture, _, tag = name.partition(".")
        tagged = timm.list_models(f"{architecture}.*", pretrained=True)
        raise DetkitError(
            f"backbone.name: timm has no weights {tag!r} of {architecture}{nearest(name, tagged)}"
        ) from None
    if pretrained and not (config and config.has_weights):
        raise DetkitError(f"backbone.pretrained: timm has no weights of {name}; set it to false")


def under_timms_names(name: str, tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return a state dict of the authors', or of torchvision's VGG, as timm has it where it loads such weights itself.

    Names are converted, positions and patches of another size resampled to the model's. Tensors of another model are
    given back as they are.
    """
    convert = getattr(inspect.getmodule(timm.model_entrypoint(name)), "checkpoint_filter_fn", None)
    try:
        if isinstance(model, VGG):
            return dict(_of_vgg(*item) for item in tensors.items())
        return tensors if convert is None else dict(convert(tensors, model))
    except (AttributeError, KeyError, RuntimeError):
        return tensors


def _of_vgg(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    """Rename a tensor of torchvision's VGG; its first two connected layers are convolutions in timm."""
    layer, _, kind = name.rpartition(".")
    if layer in ("classifier.0", "classifier.3") and kind == "weight":
        tensor = tensor.unflatten(1, (-1, 7, 7) if layer == "classifier.0" else (-1, 1, 1))
    return f"{_VGG.get(layer, layer)}.{kind}", tensor


def _create(name: str, pretrained: bool, options: dict[str, Any], indices: tuple[int, ...]) -> Any:
    model = load_or_explain(
        name,
        pretrained,
        lambda: timm.create_model(name, pretrained, features_only=True, out_indices=indices, **options),
    )
    loosen(model)
    return model


def load_or_explain(name: str, pretrained: bool, create: Callable[[], Any]) -> Any:
    """Return the model that is created, or raise DetkitError where its weights cannot be had."""
    try:
        return create()
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        raise DetkitError(
            f"backbone.pretrained: the weights of timm/{name} could not be loaded ({first_line(error)}); connect to "
            f"the network once, or set it to false"
        ) from error


def _with_drop_path(name: str, options: dict[str, Any], rate: float) -> dict[str, Any]:
    """Return the arguments with the rate of stochastic depth; raises DetkitError where the model has none."""
    options = options | {"drop_path_rate": rate}
    try:
        _draft(name, options)
    except TypeError:
        raise DetkitError(f"backbone.drop_path: timm/{name} has no stochastic depth; set it to 0") from None
    return options


class Unfilled(TorchFunctionMode):
    """Passes over what fills tensors in place: most of the time in which a model without memory is built."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return the tensor as it is where it has no memory and the function ends on `_`."""
        name = getattr(func, "__name__", "")
        if name.endswith("_") and not name.endswith("__") and args and getattr(args[0], "is_meta", False):
            return args[0]
        return func(*args, **(kwargs or {}))


def _draft(name: str, options: dict[str, Any]) -> Any:
    """Return the model with all its maps and no memory, to be asked what it has and which pictures it takes."""
    with torch.device("meta"), Unfilled():
        model = timm.create_model(name, features_only=True, **options).eval()
        loosen(model)
        return model


def _draft_with_patch(name: str) -> tuple[Any, dict[str, Any]]:
    """Return the draft and the arguments that make a plain transformer's patch a power of two.

    The picture it is made for grows with the patch, so that its position table keeps its size.
    """
    draft = _draft(name, {})
    patch, *others = set(draft.feature_info.reduction())
    if others or patch.bit_count() == 1:
        return draft, {}
    wanted = 1 << patch.bit_length()
    options: dict[str, Any] = {"patch_size": wanted}
    if draft.pretrained_cfg["fixed_input_size"]:
        options["img_size"] = tuple(side // patch * wanted for side in draft.pretrained_cfg["input_size"][1:])
    try:
        return _draft(name, options), options
    except TypeError:
        return draft, {}


def _levels(name: str, own: list[int], strides: tuple[int, ...]) -> list[int]:
    """Return which of the model's maps have the wanted strides; of a plain transformer, the last one."""
    if len(set(own)) == 1:
        return [len(own) - 1]
    missing = [stride for stride in strides if stride not in own]
    if missing:
        raise DetkitError(
            f"backbone.name: timm/{name} has maps of strides {_list(own)}, not of {_list(missing)}; choose among "
            f"these or take another model"
        )
    return [len(own) - 1 - own[::-1].index(stride) for stride in strides]


def _fit(
    name: str,
    plain: Any,
    patch: dict[str, Any],
    levels: list[int],
    size_hw: tuple[int, int],
    step: int,
    own_size: Sequence[int],
) -> tuple[dict[str, Any], bool, set[str]]:
    """Return the arguments to build the model with, whether it then takes any size, and its unused parameters."""
    attempts: tuple[dict[str, Any], ...] = (
        {"dynamic_img_size": True, "dynamic_img_pad": True},
        {},
        {"dynamic_img_size": True, "img_size": size_hw},  # Swin: windows and shifts follow this size
        {"img_size": size_hw},
    )
    fixed = name.startswith(_SIZE_IS_FIXED)
    found, reason = None, ""
    for attempt in attempts[-1:] if fixed else attempts:
        options = {**patch, **attempt}
        try:
            draft = _draft(name, options) if attempt else plain
            with torch.enable_grad():
                maps = _run(draft, levels, size_hw)
        except MISFIT as error:
            if "unexpected keyword" not in str(error):
                reason = f" ({first_line(error)})"
            continue
        unused = _unused(draft, maps)
        if fixed:
            return options, False, unused
        try:
            with torch.no_grad():
                _run(draft, levels, (size_hw[0] + step, size_hw[1] + 2 * step))
        except MISFIT:
            found = found or (options, False, unused)
        else:
            return options, True, unused
    if found is not None:
        return found
    raise DetkitError(
        f"backbone.name: timm/{name} gives no maps for pictures of {by(size_hw)}{reason}; it was made for "
        f"{by(own_size)}, set preprocess.size or take another model"
    )


def _run(draft: Any, levels: list[int], size_hw: tuple[int, int]) -> list[Tensor]:
    """Return the draft's maps of a picture of this size; raise ValueError where one is not size / stride."""
    maps = run_at_any_size(draft, torch.empty(1, 3, *size_hw, device="meta"))
    for level in levels:
        stride = draft.feature_info.reduction()[level]
        got = tuple(maps[level].shape[1:3] if _is_nhwc(draft) else maps[level].shape[2:])
        expected = size_hw[0] // stride, size_hw[1] // stride
        if got != expected:
            raise ValueError(f"its map of stride {stride} is {by(got)}, not {by(expected)}")
    return [maps[level] for level in levels]


def _unused(draft: Any, maps: list[Tensor]) -> set[str]:
    """Return the parameters that none of the maps depends on, such as HRNet's for a stride that is not wanted."""
    parameters = {name: parameter for name, parameter in draft.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad([x.sum() for x in maps], list(parameters.values()), allow_unused=True)
    return {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None}


def _is_nhwc(model: nn.Module) -> bool:
    return getattr(model, "output_fmt", "NCHW") == "NHWC"


def _round_up(side: int, step: int) -> int:
    return -(-side // step) * step


def by(size_hw: Sequence[int]) -> str:
    """Return a size as height×width."""
    return "×".join(map(str, size_hw))


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def first_line(error: BaseException) -> str:
    """Return what an error says first, without a full stop."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
