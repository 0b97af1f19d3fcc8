import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from sota_ml_researcher.core.errors import DataError, ModelError
from sota_ml_researcher.models.chat import ChatRenderer, Message, Rendered, mask_view
from sota_ml_researcher.models.renderers import load_renderer

CHAT = [
    Message(role="system", content="be brief"),
    Message(role="user", content="hello"),
    Message(role="assistant", content="world"),
    Message(role="user", content="héllo 日本 <|im_end|>?"),
    Message(role="assistant", content="the answer\nis 4"),
]


def render(renderer: ChatRenderer, messages: Sequence[Message]) -> Rendered:
    return renderer.render_many([messages])[0]


def test_only_the_assistants_words_and_the_end_of_its_turn_are_trained(tiny_model: Path) -> None:
    renderer = load_renderer(str(tiny_model))
    view = mask_view(renderer, render(renderer, CHAT[:3]))
    assert view == (
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
        "⟦world<|im_end|>⟧"
    )


def test_every_assistant_turn_of_a_conversation_is_trained(tiny_model: Path) -> None:
    renderer = load_renderer(str(tiny_model))
    view = mask_view(renderer, render(renderer, CHAT))
    assert view.count("⟦") == 2
    assert "⟦world<|im_end|>⟧" in view
    assert view.endswith("⟦the answer\nis 4<|im_end|>⟧")


@pytest.mark.parametrize("turn", [2, 4])
def test_the_prompt_of_sampling_is_the_beginning_of_what_was_trained(tiny_model: Path, turn: int) -> None:
    renderer = load_renderer(str(tiny_model))
    trained = render(renderer, CHAT[: turn + 1])
    prompt = renderer.generation_prompt(CHAT[:turn])
    assert list(trained.tokens[: len(prompt)]) == prompt
    assert all(trained.weights[len(prompt) :])
    assert trained.weights[len(prompt) - 1] == 0


def test_the_mask_is_that_of_transformers_generation_tags(tmp_path: Path, tiny_model: Path) -> None:
    """An independent reference: transformers marks assistant tokens where a template says {% generation %}."""
    from transformers import PreTrainedTokenizerFast

    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}"
        "{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}"
        "{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant{{ '\n' }}{% endif %}"
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tiny_model / "tokenizer.json"))
    plain = [m for m in CHAT if "<|" not in m["content"]][:3]
    expected = tokenizer.apply_chat_template(
        plain, chat_template=template, return_assistant_tokens_mask=True, return_dict=True
    )
    from tiny_models import write_tiny_model

    ours = render(load_renderer(str(write_tiny_model(tmp_path, template=template))), plain)
    length = len(ours.tokens)
    assert list(ours.tokens) == expected["input_ids"][:length]
    assert list(ours.weights) == expected["assistant_masks"][:length]


def test_many_conversations_render_as_each_alone(tiny_model: Path) -> None:
    renderer = load_renderer(str(tiny_model))
    together = renderer.render_many([CHAT, CHAT[:3]])
    assert together == [render(renderer, CHAT), render(renderer, CHAT[:3])]


@pytest.mark.parametrize("name", [None, "qwen3"])
@pytest.mark.parametrize("limit", [0, 1, 9, 20, 10**6])
def test_sizes_are_those_of_the_tokens(tiny_model: Path, name: str | None, limit: int) -> None:
    renderer = load_renderer(str(tiny_model), name)
    chats = [CHAT, CHAT[:3], [CHAT[1], {**CHAT[2], "trained": True}]]
    for size, whole in zip(renderer.measure_many(chats), renderer.render_many(chats), strict=True):
        assert (size.tokens, size.trained, size.notes) == (len(whole.tokens), sum(whole.weights), whole.notes)
        assert size.trained_within(limit) == sum(whole.weights[:limit])


def test_an_answer_decodes_to_its_text_without_the_end_of_turn(tiny_model: Path) -> None:
    renderer = load_renderer(str(tiny_model))
    rendered = render(renderer, CHAT)
    answer = [t for t, w in zip(rendered.tokens, rendered.weights, strict=True) if w][-20:]
    assert renderer.decode(answer).endswith("is 4")
    assert answer[-1] in renderer.stop


def test_a_template_that_rewrites_history_trains_the_last_answer_and_says_so(tmp_path: Path) -> None:
    from tiny_models import write_tiny_model

    thinking = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1] }}"
        "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    renderer = load_renderer(str(write_tiny_model(tmp_path, template=thinking)))
    turns = [*CHAT[:2], Message(role="assistant", content="<think>hm</think>world"), *CHAT[3:]]
    rendered = render(renderer, turns)
    assert rendered.notes == {"last_turn_only", "control_text"}
    assert mask_view(renderer, rendered).count("⟦") == 1
    prompt = renderer.generation_prompt(turns[:-1])
    assert list(rendered.tokens[: len(prompt)]) == prompt


def test_a_template_without_its_own_prompt_as_a_beginning_is_refused(tmp_path: Path) -> None:
    from tiny_models import write_tiny_model

    broken = "{% if add_generation_prompt %}PROMPT{% else %}{{ messages[-1].content }}{% endif %}"
    with pytest.raises(ModelError, match="differently after its own generation prompt"):
        load_renderer(str(write_tiny_model(tmp_path, template=broken)))


def test_a_conversation_the_template_refuses_is_a_data_error(tmp_path: Path) -> None:
    from tiny_models import CHATML, write_tiny_model

    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}" + CHATML
    renderer = load_renderer(str(write_tiny_model(tmp_path, template=strict)))
    with pytest.raises(DataError, match="chat template refuses it: no system turns"):
        render(renderer, CHAT)


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        ("tokenizer.json", "no tokenizer.json"),
        ("template", "has no chat template"),
        ("syntax", "chat template is broken"),
        ("garbage", "tokenizer cannot be read"),
        ("eos", "nothing ends an answer"),
    ],
)
def test_a_model_folder_that_cannot_chat_says_what_is_missing(tmp_path: Path, broken: str, problem: str) -> None:
    from tiny_models import write_tiny_model

    template = {"template": None, "syntax": "{% for %}", "eos": "{% for m in messages %}{{ m.content }} {% endfor %}"}
    folder = write_tiny_model(tmp_path, **({"template": template[broken]} if broken in template else {}), eos=None)
    if broken == "tokenizer.json":
        (folder / "tokenizer.json").unlink()
    elif broken == "garbage":
        (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=problem):
        load_renderer(str(folder))


def test_an_unknown_model_and_an_unreachable_one_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such model"):
        load_renderer("nonsense")
    with pytest.raises(ModelError, match="hub is out of reach"):
        load_renderer("some-org/some-model")
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        load_renderer(str(tmp_path))


def test_the_cookbooks_renderer_agrees_on_a_plain_chat_template(tiny_model: Path) -> None:
    """The cookbook's qwen3_instruct writes the same ChatML: same tokens, same mask."""
    from tinker_cookbook import renderers
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tiny_model / "tokenizer.json"))
    theirs, weights = renderers.get_renderer("qwen3_instruct", tokenizer).build_supervised_example(
        CHAT[:3], train_on_what=renderers.TrainOnWhat.ALL_ASSISTANT_MESSAGES
    )
    ours = render(load_renderer(str(tiny_model)), CHAT[:3])
    assert list(ours.tokens) == theirs.to_ints()
    assert [float(w) for w in ours.weights] == weights.tolist()


def test_a_renderer_of_another_family_is_refused_with_the_way_out(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match=r"'llama3' ends a turn with a token that the tokenizer of .* does not have"):
        load_renderer(str(tiny_model), "llama3")
