"""ResMem in PyTorch: memorability of an image, and of a video as the mean over its frames.

Sources:
- per-frame image memorability, averaged over the frames of a video: Cohendet, Demarty and Duong,
  "Transfer learning for video memorability prediction", 003_0369d3040d9b9e4f.txt, section 2
  (Run 1, with MemNet). Here the image model is MemNet's published successor, ResMem;
- the network: Needell and Bainbridge, "Embracing New Techniques in Deep Learning for Predicting
  Image Memorability" (2021), as described by the `resmem` package: an AlexNet-like branch and a
  whole ResNet-152 side by side, joined by seven linear layers. Parameter names and shapes are
  those of the published weights, so that they load with `load_state_dict(strict=True)`.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from memcli.spec import FramePrep

_BRANCH_FEATURES = 256 * 6 * 6
_RESNET_CLASSES = 1000


class Bottleneck(nn.Module):
    """Residual block of ResNet-50 and deeper: 1x1 reduce, 3x3, 1x1 expand by four.

    The stride sits on the 3x3 convolution ("ResNet v1.5"), as in the published weights.
    Source: He et al., "Deep Residual Learning for Image Recognition" (2016), figure 5.
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int):
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, 4 * width, H / stride, W / stride]."""
        residual = functional.relu(self.bn1(self.conv1(x)))
        residual = functional.relu(self.bn2(self.conv2(residual)))
        residual = self.bn3(self.conv3(residual))
        shortcut = x if self.downsample is None else self.downsample(x)
        return functional.relu(residual + shortcut)


class ResNet(nn.Module):
    """Bottleneck ResNet with its 1000-way classifier; depths (3, 8, 36, 3) make ResNet-152."""

    def __init__(self, depths: tuple[int, int, int, int] = (3, 8, 36, 3)):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        channels = 64
        for stage, depth in enumerate(depths):
            width = 64 * 2**stage
            blocks = []
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(Bottleneck(channels, width, stride))
                channels = width * Bottleneck.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, _RESNET_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 3, H, W] -> logits [N, 1000]."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = functional.max_pool2d(x, 3, stride=2, padding=1)
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        return cast(Tensor, self.fc(x.mean(dim=(2, 3))))


class LocalResponseNorm(nn.Module):
    """`nn.LocalResponseNorm` across `size` (odd) channels that exports as ONNX's one LRN node.

    The exporter would decompose the functional into a 3-D average pool and a power.
    """

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the same shape."""
        if torch.onnx.is_in_onnx_export():
            attrs = {"alpha": 1e-4, "beta": 0.75, "bias": 1.0, "size": self.size}
            node = torch.onnx.ops.symbolic("LRN", (x,), attrs, dtype=x.dtype, shape=x.shape)
            return cast(Tensor, node)
        return functional.local_response_norm(x, self.size)


class ResMem(nn.Module):
    """Memorability of images, for 227 x 227 pixels only (the linear layers fix the size).

    `depths` shrinks the residual branch for fast tests; the published weights need the default.
    """

    def __init__(self, depths: tuple[int, int, int, int] = (3, 8, 36, 3)):
        super().__init__()
        self.features = ResNet(depths)
        self.conv1 = nn.Conv2d(3, 48, 11, stride=4)
        self.lrn1 = LocalResponseNorm(5)
        self.conv2 = nn.Conv2d(48, 256, 5, padding=2, groups=2)
        self.lrn2 = LocalResponseNorm(5)
        self.conv3 = nn.Conv2d(256, 384, 3, padding=1, groups=2)
        self.conv4 = nn.Conv2d(384, 384, 3, padding=1, groups=2)
        self.conv5 = nn.Conv2d(384, 256, 3, padding=1, groups=2)
        self.fc6 = nn.Linear(_BRANCH_FEATURES + _RESNET_CLASSES, 4096)
        self.fc7 = nn.Linear(4096, 4096)
        self.fc8 = nn.Linear(4096, 2048)
        self.fc9 = nn.Linear(2048, 1024)
        self.fc10 = nn.Linear(1024, 512)
        self.fc11 = nn.Linear(512, 256)
        self.fc12 = nn.Linear(256, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, 3, 227, 227], normalised -> memorability [N, 1] in [0, 1]."""
        x = functional.relu(self.conv1(images))
        x = self.lrn1(functional.max_pool2d(x, 3, stride=2))
        x = functional.relu(self.conv2(x))
        x = self.lrn2(functional.max_pool2d(x, 3, stride=2))
        x = functional.relu(self.conv3(x))
        x = functional.relu(self.conv4(x))
        x = functional.relu(self.conv5(x))
        x = functional.max_pool2d(x, 3, stride=2).reshape(-1, _BRANCH_FEATURES)

        x = torch.cat((x, self.features(images)), dim=1)
        # Dropout sits after fc6 and fc7 when training; it holds no parameters.
        x = functional.dropout(functional.relu(self.fc6(x)), 0.5, self.training)
        x = functional.dropout(functional.relu(self.fc7(x)), 0.5, self.training)
        for layer in (self.fc8, self.fc9, self.fc10, self.fc11):
            x = functional.relu(layer(x))
        return torch.sigmoid(self.fc12(x))


class ResMemVideo(nn.Module):
    """Memorability of videos: `ResMem` on every frame, averaged over the frames.

    The normalisation (x * scale - mean) / std of `prep` happens here, so that an exported graph
    takes the uint8 frames that `memcli.preprocess` makes from the same `prep`.
    """

    def __init__(self, image_model: nn.Module, prep: FramePrep):
        super().__init__()
        self.image_model = image_model
        self.prep = prep

    def normalise(self, frames: Tensor) -> Tensor:
        """uint8 [B, T, H, W, 3] -> float [B * T, 3, H, W] in the range the weights expect."""
        x = frames.reshape(-1, *self.prep.frame_shape())
        x = x.permute(0, 3, 1, 2).to(torch.float32) * self.prep.scale
        if any(self.prep.mean):
            x = x - torch.tensor(self.prep.mean).view(1, 3, 1, 1)
        if any(value != 1.0 for value in self.prep.std):
            x = x / torch.tensor(self.prep.std).view(1, 3, 1, 1)
        return x

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 frames [B, T, H, W, 3] -> score [B] in [0, 1] and frame scores [B, T]."""
        scores = self.image_model(self.normalise(frames))
        frame_scores = scores.reshape(frames.shape[0], frames.shape[1])
        return frame_scores.mean(dim=1), frame_scores
