"""Moved to agents.presets (settings) and rlpre.compare.train."""  # ALIAS

from agents.presets import PPOConfig, TrainConfig  # noqa: F401
from rlpre.compare import train as _train
from rlpre.compare.train import EVALUATION_SEED  # noqa: F401
from rlpre.compare.train import ReportSteps as Report  # noqa: F401


def train(config, out, report=lambda steps: None):
    return _train.train(config.training(), out, report)
