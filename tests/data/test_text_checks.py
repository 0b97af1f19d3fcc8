"""What is found in the words of a row, and what is not."""

from typing import Any

import pytest

from sota_ml_researcher.data.text_checks import answer_problems, text_problems

LONG = "The harbour was rebuilt in stone after the flood, and the town grew around it for a hundred years. "


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("### Instruction:\nTranslate this.", "template_echo"),
        ("Below is an instruction that describes a task. Write a response.", "template_echo"),
        ("Fine.\n### Response:", "template_echo"),
        ("Answer this: {question}", "placeholder"),
        ("I am {{name}}, made by {{ author }}.", "placeholder"),
        ("done <|im_end|>", "chat_marker"),
        ("Dear [PAD] [PAD]", "chat_marker"),
        ("done</s>", "chat_marker"),
        ("lost � here", "replacement_character"),
        ("cafÃ© au lait", "mojibake"),
        ("bell \x07", "control_character"),
    ],
)
def test_what_other_programs_left_is_found(text: str, kind: str) -> None:
    assert kind in set(text_problems(text))


@pytest.mark.parametrize(
    "text",
    [
        "### Answer:\n42",
        "### Instructions for use\nShake well.",
        'print(f"Hello {name}, you said {input}")',
        r"The fraction \frac{input}{output} of ${x}$",
        'A template such as "Answer {question}" has a placeholder.',
        '{"input": {"question": 1}}',
        "<b>bold</b> <s>struck</s> text",
        "naïve Ångström — “quoted” 日本語\n\tindented\r\n",
    ],
)
def test_what_only_looks_like_it_is_not(text: str) -> None:
    assert list(text_problems(text)) == []


def problems(prompt: str, answer: str, **more: Any) -> set[str]:
    return set(answer_problems([{"role": "user", "content": prompt}, {"role": "assistant", "content": answer, **more}]))


@pytest.mark.parametrize(
    ("prompt", "answer", "kind"),
    [
        ("What is the capital of Peru?", "What is the capital of Peru? Lima.", "prompt_repeated"),
        ("Best sights of Rome?", "As an AI language model, I cannot travel, but the Colosseum.", "boilerplate"),
        ("Which film is better?", "I do not have personal opinions or beliefs.", "boilerplate"),
        ("q", LONG + "After that the", "cut_sentence"),
        ("q", LONG + "They sold fish, bread,", "cut_sentence"),
        ("q", "Run:\n```python\nprint(1)", "open_code_block"),
        ("q", '{"name": "Ada", "values": [1, 2', "cut_json"),
        ("q", '{"name": "Ad', "cut_json"),
        ("q", "nan", "no_value"),
        ("None", "An answer.", "no_value"),
        ("Great film!\nSentiment: positive", "positive", "label_leak"),
        ("2+2? The correct answer is 4.", "4", "label_leak"),
        ("Text: x (label = spam)", "spam", "label_leak"),
    ],
)
def test_what_is_wrong_with_an_answer_is_found(prompt: str, answer: str, kind: str) -> None:
    assert kind in problems(prompt, answer)


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("Are you an AI?", "As an AI, I have no body."),
        ("q", LONG + "It is finished."),
        ("q", "apples, pears, and"),  # too short to say
        ("q", "Fence:\n```sh\nls\n```\nand ~~struck~~"),
        ("q", "1. First:\n   ```\n   a\n   ```\n2. Second"),
        ("q", '{"a": [1, 2]}'),
        ("q", "[1] cites the first, [2] the second"),
        ("q", "{x | x > 0} is the set"),
        ("Is this spam or ham? Label: spam or ham\nBuy now", "spam"),
        ("Q: 1+1?\nAnswer: 2\nQ: 1+3?\nAnswer:", "4"),
        ("Say hello", "hello"),
        ("Repeat after me: hello", "hello"),
        ("Hi", "Hi there"),
    ],
)
def test_a_sound_answer_is_left_alone(prompt: str, answer: str) -> None:
    assert problems(prompt, answer) == set()


def test_only_what_is_trained_is_judged() -> None:
    assert problems("q", "Run:\n```python\nprint(1)", trained=False) == set()
    called: Any = [{"type": "function", "function": {"name": "f", "arguments": {}}}]
    assert problems("q", '{"name": "f', tool_calls=called) == set()
