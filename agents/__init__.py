"""Agents: recipes that differ in one thing, and the run that trains one of them."""

from agents.recipes import RECIPES, Recipe
from agents.train import PPOConfig, TrainConfig, train

__all__ = ["RECIPES", "PPOConfig", "Recipe", "TrainConfig", "train"]
