"""Small networks, each built around one pattern that has broken pruning tools."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def block(i: int, o: int, k: int = 3, **kw: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, k, padding=k // 2, bias=False, **kw), nn.BatchNorm2d(o), nn.ReLU())


class Headed(nn.Module):
    """A body between a stem and a classifier."""

    def __init__(self, body: nn.Module, width: int, out: int) -> None:
        super().__init__()
        self.stem, self.body, self.head = block(3, width), body, nn.Linear(out, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


class Shuffle(nn.Module):
    """Channel shuffle by view and transpose (ShuffleNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.groups = block(16, 32), block(32, 24), 4

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        n, c, h, w = x.shape
        x = x.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.b(x)


class Glu(nn.Module):
    """A gated linear unit by chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = block(16, 64), block(32, 24)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.up(x).chunk(2, dim=1)
        return self.down(value * gate.sigmoid())


class C2f(nn.Module):
    """Split, a chain of bottlenecks, and everything concatenated (YOLOv8's C2f)."""

    def __init__(self) -> None:
        super().__init__()
        self.c = 16
        self.cv1, self.cv2 = block(16, 32, 1), block(64, 24, 1)
        self.m = nn.ModuleList(nn.Sequential(block(16, 16), block(16, 16)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).chunk(2, 1))
        for m in self.m:
            y.append(y[-1] + m(y[-1]))
        return self.cv2(torch.cat(y, 1))


class C2fSplit(C2f):
    """The same by split with a size that the class keeps."""

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).split((self.c, self.c), 1))
        for m in self.m:
            y.append(y[-1] + m(y[-1]))
        return self.cv2(torch.cat(y, 1))


class Pixel(nn.Module):
    """PixelShuffle between convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.shuffle, self.down = block(16, 64), nn.PixelShuffle(2), block(16, 24)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.shuffle(self.up(x)))


class Twice(nn.Module):
    """cat(x, x)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = block(16, 16), block(32, 24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(torch.cat([x, x], 1))


class Gate(nn.Module):
    """Squeeze and excite."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = block(16, 32), block(32, 24)
        self.down, self.up = nn.Conv2d(32, 8, 1), nn.Conv2d(8, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(x * self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid())


class Flat(nn.Module):
    """Flatten to a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.fc = block(3, 16), block(16, 24), nn.Linear(24 * 16 * 16, 32)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.fc(self.conv(self.stem(x)).flatten(1)).relu())


class Norms(nn.Module):
    """Group norm, layer norm over channels, and a softmax over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.gn, self.b = nn.Conv2d(16, 32, 3, padding=1), nn.GroupNorm(8, 32), nn.Conv2d(32, 24, 1)
        self.ln, self.c = nn.LayerNorm(24), nn.Conv2d(24, 24, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.gn(self.a(x)).relu())
        x = self.ln(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.c(x * x.softmax(1) + x.mean(1, keepdim=True))


class Attention(nn.Module):
    """Separate query, key and value, explicit scale from the head size at construction."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = 4, 6
        self.scale = self.head_dim**-0.5
        self.embed = nn.Conv2d(16, 24, 4, stride=4)
        self.q, self.k, self.v = (nn.Linear(24, 24) for _ in range(3))
        self.proj, self.fc1, self.fc2 = nn.Linear(24, 24), nn.Linear(24, 48), nn.Linear(48, 24)
        self.norm1, self.norm2 = nn.LayerNorm(24), nn.LayerNorm(24)

    def _heads(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], self.num_heads, self.head_dim).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        n, c, h, w = x.shape
        x = x.flatten(2).transpose(1, 2)
        y = self.norm1(x)
        q, k, v = (self._heads(part(y)) for part in (self.q, self.k, self.v))
        y = ((q @ k.transpose(-2, -1)) * self.scale).softmax(-1) @ v
        x = x + self.proj(y.transpose(1, 2).flatten(2))
        x = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return x.transpose(1, 2).reshape(n, c, h, w)


class Sdpa(Attention):
    """The same through scaled_dot_product_attention, whose scale follows the head size."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        n, c, h, w = x.shape
        x = x.flatten(2).transpose(1, 2)
        y = self.norm1(x)
        q, k, v = (self._heads(part(y)) for part in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.proj(y)
        return (x + self.fc2(F.gelu(self.fc1(self.norm2(x))))).transpose(1, 2).reshape(n, c, h, w)


def patterns() -> dict[str, nn.Module]:
    """Every pattern, with the weights of one seed."""
    torch.manual_seed(0)
    bodies = {
        "channel shuffle": Headed(Shuffle(), 16, 24),
        "chunk GLU": Headed(Glu(), 16, 24),
        "C2f by chunk": Headed(C2f(), 16, 24),
        "C2f by split": Headed(C2fSplit(), 16, 24),
        "PixelShuffle": Headed(Pixel(), 16, 24),
        "cat(x, x)": Headed(Twice(), 16, 24),
        "squeeze-excite": Headed(Gate(), 16, 24),
        "grouped convolution": Headed(nn.Sequential(block(16, 32, groups=4), block(32, 24)), 16, 24),
        "depthwise": Headed(nn.Sequential(block(16, 32, groups=16), block(32, 24)), 16, 24),
        "transposed convolution": Headed(
            nn.Sequential(nn.ConvTranspose2d(16, 32, 2, stride=2), block(32, 24)), 16, 24
        ),
        "flatten to linear": Flat(),
        "norms over channels": Headed(Norms(), 16, 24),
        "attention": Headed(Attention(), 16, 24),
        "scaled_dot_product_attention": Headed(Sdpa(), 16, 24),
    }
    return {name: net.eval() for name, net in bodies.items()}
