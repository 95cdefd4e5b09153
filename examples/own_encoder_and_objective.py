"""Use an architecture and a pretraining objective of your own, by name, like the built-in ones."""

import numpy as np
import torch
from torch import Tensor, nn

import rlpre
from rlpre.objectives import Objective, register_objective


def patches(channels: int, height: int, width: int, features: int = 64) -> list[nn.Module]:
    """One stage of patches, one linear stage: whatever returns modules can be an encoder."""
    size = 8
    flat = 32 * (height // size) * (width // size)
    convolution = nn.Sequential(nn.Conv2d(channels, 32, size, size), nn.ReLU(), nn.Flatten())
    return [convolution, nn.Linear(flat, features)]


class Reconstruct(Objective):
    """Predicts the frame, at a quarter of its size, from the features (an autoencoder)."""

    needs = "frames"

    def __init__(self, encoder: rlpre.Encoder, frames: rlpre.FrameStore) -> None:
        super().__init__(encoder, frames)
        channels, height, width = encoder.input.shape
        self.shape = (channels, height // 4, width // 4)
        self.decoder = nn.Linear(encoder.num_features, int(np.prod(self.shape)))

    def forward(self, views) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean squared error, and the share of the variance that is explained."""
        small = nn.functional.interpolate(views.batch.anchor.float() / 255, self.shape[1:], mode="area")
        error = (self.decoder(views.anchor).view_as(small) - small).square().mean()
        return error, {"explained": 1 - error.detach() / small.var()}


rlpre.register_encoder("patches", patches)
register_objective("reconstruct", Reconstruct)

# Frames from an array: 10 episodes of 30 frames in which a bright square moves to the right.
pixels = np.zeros((300, 32, 32, 3), np.uint8)
for row, column in enumerate(np.tile(np.arange(30), 10) % 24):
    pixels[row, 12:20, column : column + 8] = 255
episode_start = np.arange(300) % 30 == 0
frames = rlpre.from_arrays(pixels, "runs/frames/square", layout="HWC", episode_start=episode_start)

# Both names can now be combined with the built-in ones.
encoder = rlpre.Encoder("patches", rlpre.InputSpec((3, 32, 32)), features=32)
result = rlpre.pretrain(
    frames, encoder=encoder, objective="reconstruct+temporal:0.1", steps=40, batch=32, out="runs/encoders/square"
)
with torch.no_grad():
    features = result.encoder(torch.from_numpy(pixels[:4]).permute(0, 3, 1, 2))
print("features of four frames:", tuple(features.shape))
