"""Small networks around one operator each, known as traps of exporters; test_operators.py runs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from niwaki.spec import Spec
from niwaki.tasks import Classify

SPEC = Spec(size_hw=(14, 18))
TASK = Classify(tuple("abcdefg"))
WIDTH = 8


class Around(nn.Module):
    """A convolution, the operator, global pooling and a linear layer, scaled so that every class counts."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, WIDTH, 3, stride=1, padding=1), inner
        self.head = nn.LazyLinear(len(TASK.classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(self.stem(x)).flatten(1))


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Gate(nn.Module):
    """Squeeze and excite."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(WIDTH, 4, 1), nn.Conv2d(4, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        s = self.up(functional.relu(self.down(x.mean((2, 3), keepdim=True))))
        return x * functional.hardsigmoid(s)


class Tokens(nn.Module):
    """Attention over the pixels, pre-norm, with a class token in front."""

    def __init__(self, *, own: bool) -> None:
        super().__init__()
        self.token, self.own = nn.Parameter(torch.randn(1, 1, WIDTH)), own
        self.norm, self.qkv = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.whole = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)
        x = self.norm(torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1))
        if self.own:
            return x[:, 0] + self.whole(x, x, x, need_weights=False)[0][:, 0]
        count, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(count, tokens, 3, 2, WIDTH // 2).permute(2, 0, 3, 1, 4).unbind(0)
        out = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(count, tokens, WIDTH)
        return (x + out)[:, 0]


class Shuffle(nn.Module):
    """Channels split, worked on apart, and shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        x = torch.cat([a, self.conv(b)], 1)
        count, channels, height, width = x.shape
        return x.view(count, 2, channels // 2, height, width).transpose(1, 2).reshape(x.shape)


class Norm2d(nn.Module):
    """Layer norm over channels, as ConvNeXt has it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _resize(mode: str, **knobs: object) -> Callable[[], nn.Module]:
    return lambda: Call(lambda x: functional.interpolate(x, mode=mode, **knobs))  # type: ignore[arg-type]


CASES: dict[str, Callable[[], nn.Module]] = {
    "pool-adaptive-1": lambda: nn.AdaptiveAvgPool2d(1),
    "pool-adaptive-uneven": lambda: nn.AdaptiveAvgPool2d((4, 5)),
    "pool-adaptive-whole": lambda: nn.AdaptiveAvgPool2d((7, 9)),
    "pool-adaptive-max": lambda: nn.AdaptiveMaxPool2d(1),
    "pool-average-padded": lambda: nn.AvgPool2d(3, 2, padding=1),
    "pool-average-no-pad-count": lambda: nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
    "pool-average-ceil": lambda: nn.AvgPool2d(3, 2, ceil_mode=True, count_include_pad=False),
    "pool-max-ceil": lambda: nn.MaxPool2d(3, 2, padding=1, ceil_mode=True),
    "resize-nearest": _resize("nearest", scale_factor=2),
    "resize-nearest-down": _resize("nearest", size=(7, 9)),
    "resize-bilinear": _resize("bilinear", scale_factor=2, align_corners=False),
    "resize-bilinear-corners": _resize("bilinear", size=(20, 25), align_corners=True),
    "resize-bilinear-down": _resize("bilinear", size=(7, 9), align_corners=False),
    "hard-swish": nn.Hardswish,
    "hard-sigmoid": nn.Hardsigmoid,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "gelu-tanh": lambda: nn.GELU(approximate="tanh"),
    "relu6": nn.ReLU6,
    "leaky": lambda: nn.LeakyReLU(0.1),
    "prelu": lambda: nn.PReLU(WIDTH),
    "layer-norm": Norm2d,
    "group-norm": lambda: nn.GroupNorm(2, WIDTH),
    "batch-norm": lambda: nn.BatchNorm2d(WIDTH),
    "attention": lambda: Tokens(own=False),
    "attention-module": lambda: Tokens(own=True),
    "squeeze-excite": Gate,
    "shuffle": Shuffle,
    "stride-slice": lambda: Call(lambda x: x[:, :, ::2, ::2]),
    "pad-channels": lambda: Call(lambda x: functional.pad(x, (0, 0, 0, 0, 2, 3))),
    "pad-uneven": lambda: nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(WIDTH, 4, 3, 2)),
    "pad-reflect": lambda: nn.Conv2d(WIDTH, 4, 3, padding=1, padding_mode="reflect"),
    "dilated": lambda: nn.Conv2d(WIDTH, 4, 3, padding=2, dilation=2),
    "transposed": lambda: nn.ConvTranspose2d(WIDTH, 4, 3, 2, padding=1, output_padding=1),
    "pixel-shuffle": lambda: nn.PixelShuffle(2),
    "resize-bicubic": _resize("bicubic", size=(20, 25), align_corners=False),
    "resize-nearest-exact": _resize("nearest-exact", size=(20, 25)),
    "pool-max-dilated": lambda: nn.MaxPool2d(3, 1, dilation=2),
    "depthwise-strided": lambda: nn.Conv2d(WIDTH, 2 * WIDTH, 3, 2, padding=1, groups=WIDTH),
    "instance-norm": lambda: nn.InstanceNorm2d(WIDTH, affine=True),
    "normalise": lambda: Call(lambda x: functional.normalize(x, dim=1)),
    "softmax-channels": lambda: nn.Softmax(1),
    "elu": nn.ELU,
    "mish": nn.Mish,
    "roll": lambda: Call(lambda x: torch.roll(x, (2, 3), (2, 3))),
    "einsum": lambda: Call(lambda x: torch.einsum("bchw,bdhw->bcd", x, x)),
    "mean-of-one-axis": lambda: Call(lambda x: x.mean(3)),
}
"""Name of an operator -> what makes the middle of its network."""


LACKS = {"litert": ("transposed",), "ncnn": ("resize-nearest-exact", "pool-max-dilated")}
"""What a runtime's converter has no form for; `test_operators` holds that it is refused by name."""


class Together(nn.Module):
    """Several cases side by side, their outputs one after the other: one export tries them all."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.parts = nn.ModuleList([build(name) for name in names])

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.parts], 1)


def errors(
    wanted: npt.NDArray[np.float32], got: npt.NDArray[np.float32], names: Sequence[str]
) -> dict[str, float]:
    """Largest relative difference of a probability in each case's columns of `[N, K]`: since all share one
    softmax, that is the difference of the case's outputs but for a common one."""
    columns = np.abs(np.log(got.astype(np.float64)) - np.log(wanted.astype(np.float64)))
    found = columns.reshape(len(wanted), len(names), len(TASK.classes)).max((0, 2))
    return dict(zip(names, found.tolist(), strict=True))


def build(name: str) -> nn.Module:
    """The network of one case, in eval mode, its outputs of unit spread so that errors show."""
    torch.manual_seed(sum(map(ord, name)))
    model = Around(CASES[name]())
    images = torch.from_numpy(SPEC.example(8))
    model.train()
    with torch.no_grad():
        for _ in range(2):
            out = model(images)
        model.head.weight.div_(out.std())
        model.head.bias.sub_(model.head.bias)
    return model.eval()
