"""mesoinception4: a shallow network for mesoscopic traces of forgery.

Source: Afchar et al., *MesoNet: a Compact Facial Video Forgery Detection Network*, WIFS 2018, with
their released Keras code for what the paper leaves open. Recipe: 256 px, pixels in 0..1, batches of
75 images, Adam at 1e-3, a tenth of it after every 1000 steps down to 1e-6.

Departures: two logits under cross-entropy instead of the squared error of one sigmoid; batch norm
and initial weights are PyTorch's defaults. Known ports share one batch norm between the two 5x5
convolutions and drop whole features in the head; here each convolution has its own, and the head
drops single values, as in the original.
"""

from collections.abc import Sequence

import torch
from timm.layers import to_2tuple
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F


class Inception(nn.Module):
    """[N,C,h,w] -> [N,a+b+c+d,h,w]: a 1x1 convolution, and three of 1x1 then 3x3 whose dilations
    are 1, 2 and 3; a ReLU after each convolution."""

    def __init__(self, in_chans: int, widths: tuple[int, int, int, int]) -> None:
        super().__init__()
        alone, *wide = widths
        self.alone = nn.Conv2d(in_chans, alone, 1)
        self.narrow = nn.ModuleList(nn.Conv2d(in_chans, width, 1) for width in wide)
        self.wide = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation)
            for dilation, width in enumerate(wide, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        branches = [
            wide(F.relu(narrow(x))) for narrow, wide in zip(self.narrow, self.wide, strict=True)
        ]
        return torch.cat([self.alone(x), *branches], 1).relu()


class MesoInception4(nn.Module):
    """forward(images [N,in_chans,S,S] in 0..1) -> logits [N,num_classes]. S is `img_size`: the head
    is a dense layer on all of the last map."""

    def __init__(
        self,
        num_classes: int = 2,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = 256,
        drop_rate: float = 0.5,
    ) -> None:
        super().__init__()
        places = -(-to_2tuple(img_size)[0] // 32)
        self.stages = nn.Sequential(
            _stage(Inception(in_chans, (1, 4, 4, 2)), 11, 2),
            _stage(Inception(11, (2, 4, 4, 2)), 12, 2),
            _stage(nn.Sequential(nn.Conv2d(12, 16, 5, padding=2), nn.ReLU()), 16, 2),
            _stage(nn.Sequential(nn.Conv2d(16, 16, 5, padding=2), nn.ReLU()), 16, 4),
        )
        self.feature_info = [
            {"num_chs": channels, "reduction": stride, "module": f"stages.{number}"}
            for number, (channels, stride) in enumerate([(11, 2), (12, 4), (16, 8), (16, 32)])
        ]
        self.num_features = self.head_hidden_size = 16
        self.dropout = nn.Dropout(drop_rate)
        self.hidden = nn.Linear(16 * places**2, self.head_hidden_size)
        self.reset_classifier(num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.stages(x)

    def forward_intermediates(
        self, x: Tensor, indices: Sequence[int] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """The last map, and those of the stages `indices`; of all without them."""
        maps = []
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if indices is None or number in indices:
                maps.append(x)
        return x, maps

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = F.leaky_relu(self.hidden(self.dropout(x.flatten(1))), 0.1)
        return x if pre_logits else self.fc(self.dropout(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.fc = nn.Linear(self.head_hidden_size, num_classes) if num_classes else nn.Identity()


def _stage(convolutions: nn.Module, channels: int, shrink: int) -> nn.Sequential:
    return nn.Sequential(
        convolutions, nn.BatchNorm2d(channels), nn.MaxPool2d(shrink, ceil_mode=True)
    )


default_cfgs = generate_default_cfgs(
    {
        "mesoinception4": {
            "input_size": (3, 256, 256),
            "fixed_input_size": True,
            "num_classes": 2,
            "mean": (0.0, 0.0, 0.0),
            "std": (1.0, 1.0, 1.0),
            "first_conv": ("stages.0.0.alone", *(f"stages.0.0.narrow.{i}" for i in range(3))),
            "classifier": "fc",
        }
    }
)


@register_model
def mesoinception4(pretrained: bool = False, **settings) -> MesoInception4:
    return build_model_with_cfg(MesoInception4, "mesoinception4", pretrained, **settings)
