"""Any network of mrseg as a PyTorch module with the same weights: the peer that it is timed against.

The Keras graph is walked once; every layer becomes what a PyTorch user would write for it. `check` compares
the answers before anything is timed::

    module = twin(mrseg.models.segnet((256, 256, 1)))
    check(model, module)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import torch
from keras import layers
from torch import nn
from torch.nn import functional

from mrseg.models.layers import ChannelRecalibration, SpatialRecalibration, StopGradient
from mrseg.models.resampling import LinearUpsampling, MaxPoolingWithIndices, MaxUnpooling

#: What glibc's allocator needs so that PyTorch on a CPU does not give memory back after every layer.
TUNED_ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "67108864",
}


def twin(model: keras.Model) -> Twin:
    """The same network in PyTorch, channels last in memory: (N, C, *spatial) in, (N, classes, *spatial) out.

    Raises:
        NotImplementedError: a layer that has no counterpart here.
    """
    return Twin(model).to(memory_format=channels_last(len(model.input_shape) - 2))


def channels_last(rank: int) -> torch.memory_format:
    """The memory format of slices (rank 2) or volumes (rank 3) whose channels lie side by side."""
    return torch.channels_last if rank == 2 else torch.channels_last_3d


def batch(array: np.ndarray) -> torch.Tensor:
    """(N, *spatial, C) as a tensor (N, C, *spatial) whose channels lie side by side; no copy."""
    return torch.from_numpy(np.ascontiguousarray(array)).movedim(-1, 1)


def check(model: keras.Model, module: nn.Module, tolerance: float = 1e-3) -> None:
    """Raises AssertionError unless both give the same probabilities for noise, in float32."""
    image = np.random.default_rng(0).normal(size=(1, *model.input_shape[1:])).astype(np.float32)
    module.eval()
    with torch.inference_mode():
        theirs = module(batch(image)).movedim(1, -1).numpy()
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(model(image, training=False)), theirs, atol=tolerance
    )


class Twin(nn.Module):
    """The layers of a Keras model in the order of its graph; features are freed after their last use."""

    def __init__(self, model: keras.Model) -> None:
        super().__init__()
        self.parts = nn.ModuleDict()
        self.plan: list[tuple[str, list[int], list[int], list[int]]] = []
        wanted = id(model.outputs[0])
        for layer in model.layers:
            if isinstance(layer, layers.InputLayer):
                continue
            node = layer._inbound_nodes[-1]
            self.parts[layer.name] = _part(layer)
            inputs, outputs = (
                [id(t) for t in tensors] for tensors in (node.input_tensors, node.output_tensors)
            )
            self.plan.append((layer.name, inputs, outputs, []))
        used: set[int] = {wanted}
        for _, inputs, _, freed in reversed(self.plan):
            freed += [tensor for tensor in dict.fromkeys(inputs) if tensor not in used]
            used.update(inputs)
        self.first, self.last = id(model.inputs[0]), wanted

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Images (N, C, *spatial) to probabilities (N, classes, *spatial)."""
        known: dict[int, Any] = {self.first: image}
        for name, inputs, outputs, freed in self.plan:
            made = self.parts[name](*(known[tensor] for tensor in inputs))
            known.update(zip(outputs, made if isinstance(made, tuple) else (made,), strict=True))
            for tensor in freed:
                del known[tensor]
        return known[self.last]


class Function(nn.Module):
    """A function without weights as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *features: torch.Tensor) -> Any:
        """Whatever the function gives."""
        return self.function(*features)


class ChannelSE(nn.Module):
    """cSE of Roy et al. 2018: the channels' means through two dense layers weight the channels."""

    def __init__(self, layer: ChannelRecalibration) -> None:
        super().__init__()
        self.squeeze = _dense(layer.squeeze_kernel, layer.squeeze_bias)
        self.excite = _dense(layer.excite_kernel, layer.excite_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features to features of the same shape."""
        means = x.mean(dim=tuple(range(2, x.ndim)))
        weight = torch.sigmoid(self.excite(functional.relu(self.squeeze(means))))
        return x * weight.reshape(*weight.shape, *(1,) * (x.ndim - 2))


class SpatialSE(nn.Module):
    """sSE of Roy et al. 2018: a convolution of size 1 weights the voxels."""

    def __init__(self, layer: SpatialRecalibration, rank: int) -> None:
        super().__init__()
        kernel = np.asarray(layer.kernel).reshape(*(1,) * rank, -1, 1)
        self.weight = _convolution(kernel, np.asarray(layer.bias))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features to features of the same shape."""
        return x * torch.sigmoid(self.weight(x))


def _part(layer: keras.layers.Layer) -> nn.Module:
    """One layer with its weights."""
    rank = len(layer._inbound_nodes[-1].input_tensors[0].shape) - 2
    match layer:
        case layers.SeparableConv2D():
            depthwise, pointwise = np.asarray(layer.depthwise_kernel), np.asarray(layer.pointwise_kernel)
            first = _convolution(depthwise.swapaxes(2, 3), None, groups=depthwise.shape[2])
            return nn.Sequential(first, _convolution(pointwise, _bias(layer)))
        case layers.Conv2DTranspose() | layers.Conv3DTranspose():
            return _transposed(np.asarray(layer.kernel), _bias(layer))
        case layers.Conv2D() | layers.Conv3D():
            return _convolution(np.asarray(layer.kernel), _bias(layer), stride=layer.strides)
        case layers.BatchNormalization():
            return _norm(layer, rank)
        case layers.ReLU():
            return nn.ReLU()
        case layers.MaxPooling2D() | layers.MaxPooling3D():
            return nn.MaxPool2d(2) if rank == 2 else nn.MaxPool3d(2)
        case layers.UpSampling2D() | layers.UpSampling3D():
            return nn.Upsample(scale_factor=layer.size, mode=getattr(layer, "interpolation", "nearest"))
        case LinearUpsampling():
            return nn.Upsample(scale_factor=layer.factor, mode="bilinear" if rank == 2 else "trilinear")
        case MaxPoolingWithIndices():
            return nn.MaxPool2d(2, return_indices=True) if rank == 2 else nn.MaxPool3d(2, return_indices=True)
        case MaxUnpooling():
            return nn.MaxUnpool2d(2) if rank == 2 else nn.MaxUnpool3d(2)
        case ChannelRecalibration():
            return ChannelSE(layer)
        case SpatialRecalibration():
            return SpatialSE(layer, rank)
        case layers.Dropout():
            return nn.Dropout(layer.rate)
        case layers.Concatenate():
            return Function(lambda *features: torch.cat(features, dim=1))
        case layers.Add():
            return Function(lambda first, second: first + second)
        case layers.Multiply():
            return Function(lambda first, second: first * second)
        case layers.Maximum():
            return Function(torch.maximum)
        case layers.Average():
            return Function(lambda first, second: (first + second) * 0.5)
        case StopGradient():
            return Function(torch.Tensor.detach)
        case layers.Activation():
            return {"softmax": nn.Softmax(dim=1), "sigmoid": nn.Sigmoid(), "linear": nn.Identity()}[
                keras.activations.serialize(layer.activation)
            ]
    raise NotImplementedError(f"{type(layer).__name__} ({layer.name}) has no counterpart in PyTorch here")


def _bias(layer: keras.layers.Layer) -> np.ndarray | None:
    return np.asarray(layer.bias) if layer.use_bias else None


def _convolution(kernel: np.ndarray, bias: np.ndarray | None, groups: int = 1, stride: Any = 1) -> nn.Module:
    """Kernel (*size, in / groups, out) as Keras holds it; the same sizes out as in, unless strided."""
    *size, inside, outside = kernel.shape
    kind = nn.Conv2d if len(size) == 2 else nn.Conv3d
    made = kind(
        inside * groups, outside, tuple(size), stride=stride, padding=tuple(n // 2 for n in size),
        groups=groups, bias=bias is not None,
    )  # fmt: skip
    return _with_weights(made, np.moveaxis(kernel, (-1, -2), (0, 1)), bias)


def _transposed(kernel: np.ndarray, bias: np.ndarray | None) -> nn.Module:
    """Kernel (2, 2 (, 2), out, in) of stride 2."""
    *size, outside, inside = kernel.shape
    kind = nn.ConvTranspose2d if len(size) == 2 else nn.ConvTranspose3d
    made = kind(inside, outside, 2, stride=2, bias=bias is not None)
    return _with_weights(made, np.moveaxis(kernel, (-1, -2), (0, 1)), bias)


def _dense(kernel: Any, bias: Any) -> nn.Linear:
    kernel = np.asarray(kernel)
    return _with_weights(nn.Linear(*kernel.shape), kernel.T, np.asarray(bias))


def _norm(layer: layers.BatchNormalization, rank: int) -> nn.Module:
    kind = nn.BatchNorm2d if rank == 2 else nn.BatchNorm3d
    made = kind(layer.gamma.shape[0], eps=layer.epsilon, momentum=1 - layer.momentum)
    with torch.no_grad():
        made.running_mean.copy_(torch.from_numpy(np.array(layer.moving_mean)))
        made.running_var.copy_(torch.from_numpy(np.array(layer.moving_variance)))
    return _with_weights(made, np.asarray(layer.gamma), np.asarray(layer.beta))


def _with_weights(made: Any, weight: np.ndarray, bias: np.ndarray | None) -> Any:
    with torch.no_grad():
        made.weight.copy_(torch.from_numpy(np.ascontiguousarray(weight)))
        if bias is not None:
            made.bias.copy_(torch.from_numpy(np.array(bias)))
    return made
