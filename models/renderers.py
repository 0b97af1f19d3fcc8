"""Which renderer a model gets: its own chat template, or one of the cookbook's."""

from __future__ import annotations

from .chat import ChatRenderer
from .chat_template import load_chat_template
from .hub import tokenizer_folder
from .model_ref import resolve_model
from .template_renderer import TEMPLATE_RENDERER, TemplateRenderer


def load_renderer(base_model: str, renderer_name: str | None = None) -> ChatRenderer:
    """The renderer for a model: the one named, else its own chat template, else the cookbook's for that id.

    Raises:
        ModelError: If there is no tokenizer or no way to render chats; the message says how to get one.
    """
    model = resolve_model(base_model)
    if renderer_name is None and model.path is None:
        from .cookbook_renderer import recommended_renderer

        renderer_name = recommended_renderer(model.name)
    if renderer_name in (None, TEMPLATE_RENDERER):
        return TemplateRenderer(load_chat_template(model.path or tokenizer_folder(model.name)))
    from .cookbook_renderer import load_cookbook_renderer

    return load_cookbook_renderer(model, renderer_name)
