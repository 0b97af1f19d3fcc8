"""The recipes by name."""

from __future__ import annotations

from collections.abc import Mapping

from .distillation import Distillation
from .document_questions import Questions
from .eval_kit import EvalKit
from .generation_config import GenerationConfig, RecipeName
from .preference_pairs import Preferences
from .recipe import Recipe
from .rewrites import Rewrites

RECIPES: Mapping[RecipeName, type[Recipe]] = {
    "distillation": Distillation,
    "questions": Questions,
    "rewrites": Rewrites,
    "preferences": Preferences,
    "eval_kit": EvalKit,
}


def load_recipe(config: GenerationConfig) -> Recipe:
    """The recipe of a resolved config, its sources read.

    Raises:
        DataError: If a source cannot be used, with its file and line.
    """
    return RECIPES[config.recipe](config)
