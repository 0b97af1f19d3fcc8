"""From chat messages to tokens with a loss mask, and back: one renderer for checking, training and sampling.

What is trained must be what sampling will produce: the tokens of a prompt are made by the same code, cut at the same
places, whether an answer follows (training) or is awaited (sampling). A model's own chat template is rendered with
jinja2 and its ``tokenizer.json`` with ``tokenizers``: neither needs torch, so the server can count tokens.
"""

from __future__ import annotations

from typing import Any

from .chat import ChatRenderer
from .chat_template import TEMPLATE_RENDERER, TemplateRenderer, load_chat_template
from .model_ref import ModelRef, resolve_model

_BATCH = 256


def load_renderer(base_model: str, renderer_name: str | None = None) -> ChatRenderer:
    """The renderer for a model: the one named, else its own chat template, else the cookbook's for that id.

    Raises:
        ModelError: If there is no tokenizer or no way to render chats; the message says how to get one.
    """
    model = resolve_model(base_model)
    if renderer_name in (None, TEMPLATE_RENDERER) and model.path is not None:
        return TemplateRenderer(load_chat_template(model.path))
    if renderer_name == TEMPLATE_RENDERER:
        return TemplateRenderer(load_chat_template(_cached_folder(model)))
    return _cookbook(model, renderer_name)


def _cached_folder(model: ModelRef) -> Any:
    from .hub import tokenizer_folder

    return tokenizer_folder(model.name)


def _cookbook(model: ModelRef, name: str | None) -> ChatRenderer:
    from .cookbook_renderer import load_cookbook_renderer, recommended_renderer

    chosen = name or recommended_renderer(model.name)
    if chosen is None:
        return TemplateRenderer(load_chat_template(_cached_folder(model)))
    return load_cookbook_renderer(model, chosen)
