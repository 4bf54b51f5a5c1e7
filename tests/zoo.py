"""Small models with random weights that the tests operate on; each function builds a fresh one."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _shuffle(x: Tensor, groups: int) -> Tensor:
    batch, channels, height, width = x.size()
    x = x.view(batch, groups, channels // groups, height, width)
    return x.transpose(1, 2).contiguous().view(batch, -1, height, width)


class _UnitV1(nn.Module):
    """The unit of ShuffleNet v1 (Zhang et al., 2018, figure 2)."""

    def __init__(self, channels: int, out_channels: int, groups: int, stride: int) -> None:
        super().__init__()
        self.groups, self.stride = groups, stride
        middle = out_channels // 4
        main = out_channels - channels if stride == 2 else out_channels
        first = 1 if channels == 24 else groups
        self.compress = nn.Conv2d(channels, middle, 1, groups=first, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.depthwise = nn.Conv2d(middle, middle, 3, stride, 1, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.expand = nn.Conv2d(middle, main, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(main)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.compress(x)))
        y = _shuffle(y, self.groups)
        y = self.bn3(self.expand(self.bn2(self.depthwise(y))))
        if self.stride == 2:
            return F.relu(torch.cat([F.avg_pool2d(x, 3, 2, 1), y], 1))
        return F.relu(x + y)


class ShuffleNetV1(nn.Module):
    """Two stages of ShuffleNet v1 at a quarter of its width."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        width = {3: 120, 4: 128, 8: 192}[groups]
        self.stem = nn.Conv2d(3, 24, 3, 2, 1)
        self.units = nn.Sequential(
            _UnitV1(24, width, groups, 2),
            _UnitV1(width, width, groups, 1),
            _UnitV1(width, 2 * width, groups, 2),
            _UnitV1(2 * width, 2 * width, groups, 1),
        )
        self.fc = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.units(self.stem(x)).mean((2, 3)))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(64, 256), nn.Linear(256, 64, bias=False)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.down(F.gelu(self.up(x))))


class Convnet(nn.Module):
    """Pointwise convolutions: strided, grouped, without bias."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, padding=1)
        self.wide = nn.Conv2d(64, 128, 1)
        self.strided = nn.Conv2d(128, 64, 1, stride=2, bias=False)
        self.grouped = nn.Conv2d(64, 64, 1, groups=2)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.wide(F.relu(self.stem(x))))
        return self.fc(F.relu(self.grouped(self.strided(x))).mean((2, 3)))


class Encoder(nn.Module):
    """A layer of torch.nn that reads its children's weights in its fast path."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))


class Attention(nn.Module):
    """Attention of torch.nn: one weight for three projections, then three weights of other sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.MultiheadAttention(32, 4, batch_first=True)
        self.cross = nn.MultiheadAttention(32, 4, kdim=24, vdim=16, batch_first=True, bias=False)
        self.key, self.value = nn.Linear(32, 24), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.own(x, x, x, need_weights=False)[0]
        return y + self.cross(y, self.key(y), self.value(y))[0]


class Raw(nn.Module):
    """Parameters that the forward multiplies by itself, however it is spelled."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(24, 72, bias=False)
        self.bias = nn.Parameter(torch.randn(24) / 5)
        self.right = nn.Parameter(torch.randn(24, 40) / 5)
        self.turned = nn.Parameter(torch.randn(24, 40) / 5)
        self.left = nn.Parameter(torch.randn(7, 5) / 5)
        self.letters = nn.Parameter(torch.randn(24, 24) / 5)
        self.frozen = nn.Parameter(torch.randn(24, 24) / 5, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = F.linear(x, self.qkv.weight, torch.cat([self.bias, self.bias, self.bias])).chunk(3, -1)
        x = (q * k + v).tanh() @ self.right @ self.turned.T
        x = torch.einsum("bti,io->bto", x, self.letters)
        return torch.matmul(self.left, x) @ self.frozen


class Convolutions(nn.Module):
    """Pointwise convolutions in one, two and three dimensions, transposed ones, and timm's "same" padding."""

    def __init__(self) -> None:
        super().__init__()
        from timm.layers import Conv2dSame

        self.one = nn.Conv1d(8, 12, 1, stride=2)
        self.one_back = nn.ConvTranspose1d(12, 8, 1, bias=False)
        self.same = Conv2dSame(8, 16, 1, stride=2)
        self.two_back = nn.ConvTranspose2d(16, 8, 1, groups=2)
        self.three = nn.Conv3d(8, 8, 1, groups=4, padding="same")
        self.three_back = nn.ConvTranspose3d(8, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one_back(self.one(x)).unflatten(2, (3, 3))
        x = self.two_back(self.same(x)).unsqueeze(2)
        return self.three_back(self.three(x))


def attention() -> nn.Module:
    torch.manual_seed(0)
    return Attention()


def raw() -> nn.Module:
    torch.manual_seed(0)
    return Raw()


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    return Convolutions()


def gpt2() -> nn.Module:
    """GPT-2's own dense layer, whose weight is transposed, and a head tied to the embedding."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    small = GPT2Config(
        n_layer=2, n_embd=32, n_head=2, vocab_size=40, use_cache=False, bos_token_id=0, eos_token_id=0
    )
    return GPT2LMHeadModel(small)


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return Mlp()


def convnet() -> nn.Module:
    torch.manual_seed(0)
    return Convnet()


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return Encoder()


def shufflenet_v1_g3() -> nn.Module:
    torch.manual_seed(0)
    return ShuffleNetV1(3)


def shufflenet_v1_g4() -> nn.Module:
    torch.manual_seed(0)
    return ShuffleNetV1(4)


def shufflenet_v1_g8() -> nn.Module:
    torch.manual_seed(0)
    return ShuffleNetV1(8)


def nothing() -> nn.Module:
    """A model without a single site."""
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())


INPUTS = {
    "mlp": (3, 64),
    "convnet": (2, 3, 8, 8),
    "encoder": (2, 5, 64),
    "attention": (2, 5, 32),
    "raw": (2, 5, 24),
    "convolutions": (2, 8, 17),
    "shufflenet_v1_g3": (2, 3, 32, 32),
    "shufflenet_v1_g4": (2, 3, 32, 32),
    "shufflenet_v1_g8": (2, 3, 32, 32),
}


def example(name: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """An example for the model of that name, always the same."""
    if name == "gpt2":
        return torch.arange(12).view(2, 6)
    return torch.randn(INPUTS[name], generator=torch.Generator().manual_seed(1)).to(dtype)
