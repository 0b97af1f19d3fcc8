"""Damage and leftovers in the words of a conversation, row by row."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

from ..models.chat import Message, is_trained

_REPLACEMENT = "�"
_MOJIBAKE = re.compile(r"Ã[\x80-\xBF©¨ª«¬®¯°±²³´µ¶·¸¹º»¼½¾¿¡¢£¤¥¦§]|â€[™œ\x9d“”¢¦˜]|Â[ ©®°±·»«]")
# What chat formats write around turns; a tag that HTML has too counts at an end alone.
_MARKER = re.compile(
    r"<\|(?:im_start|im_end|im_sep|endoftext|eot_id|eom_id|start_header_id|end_header_id|begin_of_text|end_of_text"
    r"|end|start|message|channel|return|fim_prefix|fim_middle|fim_suffix|pad|eos|bos)\|>"
    r"|<(?:start|end)_of_turn>|\[/INST\]|<</SYS>>|<｜(?:User|Assistant|(?:begin|end)▁of▁sentence)｜>|</s>$"
    r"|\[(?:gMASK|PAD|UNK)\]",
    re.MULTILINE,
)
_CONTROLS = bytes([*range(9), 11, 12, *range(14, 32), 127])
# Alpaca's and Vicuna's templates; other headings of the kind stand in honest Markdown too.
_ECHO = re.compile(
    r"^(?:### (?:Instruction|Response|Human|Assistant):|Below is an instruction that describes a task"
    r"|A chat between a curious (?:user|human) and an artificial intelligence assistant)",
    re.MULTILINE,
)
_HOLE = re.compile(
    r"(?<![\w\\$%#\"'`{(\[=])\{\{? ?(?:instruction|input|question|prompt|context|response|output|completion|query"
    r"|passage|document|user_input|user_message|user_query|system_prompt|chat_history) ?\}?\}(?![\"'`}\])])"
    r"|(?<![\w\\$%#\"'`{(\[=])\{\{ ?(?:name|user|assistant|author|bot|company|date|char) ?\}\}"
)
# Where holes are meant: code, and talk about templates.
_ABOUT_HOLES = re.compile(
    r"```|\bf[\"']|\.format\(|\btemplates?\b|\bplaceholders?\b|def |\\begin|\\frac", re.IGNORECASE
)
_BOILERPLATE = re.compile(
    r"\b[Aa]s an? (?:AI|large|artificial intelligence)(?: language| chat)?(?: model| assistant| chatbot| bot)?, "
    r"|\b[Aa]s an? (?:AI |large )?language model,? I\b|\bI(?:'m| am) (?:just|only) an AI\b"
    r"|\bI do(?: not|n't) have personal (?:emotions|feelings|opinions|beliefs|preferences)\b"
)
# Who asks for an AI gets one.
_ABOUT_AI = re.compile(
    r"\bAI\b|artificial intelligence|language model|chatbot|robot|人工智能|\byour(?:self)? (?:name|feel)"
)
_NO_VALUES = frozenset({"nan", "NaN", "None", "null", "NULL", "undefined", "<NA>", "NaT", "[object Object]"})
# Words that no sentence ends with, in languages where the end of a row is easily seen.
_OPEN_WORDS = frozenset(
    "the a an and or of to with that which from because its their your my our than whose into "
    "der die das und oder mit zu den dem eine einen dass weil "
    "le les des et un une du au aux que dans pour avec "
    "el los las y o un una del al que con para".split()
)
_LEAST_SENTENCE = 80
_LEAST_REPEATED = 12
_FENCE = re.compile(r"^[ \t>]*(```+|~~~+)", re.MULTILINE)
# A prompt that ends with its own answer after such a word gives the label away.
_CUE = r"(?:answer|label|output|response|target|solution|category|class|sentiment|completion|result)"
_GIVEN = re.compile(
    rf"(?i)(?:^|[\n.;,(\[|?!)])\s*(?:the )?(?:correct |expected |final |gold |true )?{_CUE}\s*(?:[:=]|is)\s*$"
)
_LONGEST_GIVEN = 200


def text_problems(text: str) -> Iterator[str]:
    """The kinds of damage in a text: of encoding, and what other programs left."""
    if not text.isascii():
        if _REPLACEMENT in text:
            yield "replacement_character"
        if ("Ã" in text or "â€" in text or "Â" in text) and _MOJIBAKE.search(text):
            yield "mojibake"
    raw = text.encode("utf-8", "surrogatepass")
    if len(raw.translate(None, _CONTROLS)) != len(raw):
        yield "control_character"
    if ("<" in text or "[" in text) and _MARKER.search(text):
        yield "chat_marker"
    if ("###" in text or "Below is" in text or "A chat " in text) and _ECHO.search(text):
        yield "template_echo"
    if "{" in text and _HOLE.search(text) and not _ABOUT_HOLES.search(text):
        yield "placeholder"


def answer_problems(messages: Sequence[Message]) -> Iterator[str]:
    """What is wrong with the trained answers of a conversation; a kind may come more than once."""
    asked = ""
    for message in messages:
        said = message["content"]
        if message["role"] == "user":
            asked = said
            if said.strip() in _NO_VALUES:
                yield "no_value"
        if is_trained(message):
            if len(said) <= _LONGEST_GIVEN:
                yield from _short_problems(asked, said.strip())
            if repeats(asked, said):
                yield "prompt_repeated"
            if _is_boilerplate(said) and _ABOUT_AI.search(asked) is None:
                yield "boilerplate"
            if not message.get("tool_calls"):
                yield from _cuts(said)


def _short_problems(asked: str, answer: str) -> Iterator[str]:
    if answer in _NO_VALUES:
        yield "no_value"
    elif _is_given(asked, answer):
        yield "label_leak"


def repeats(prompt: str, answer: str) -> bool:
    """Whether an answer begins with its prompt and goes on."""
    asked, said = prompt.strip(), answer.strip()
    return len(asked) >= _LEAST_REPEATED and said.startswith(asked) and said[len(asked) :][:1].isspace()


def _is_boilerplate(said: str) -> bool:
    return (" AI" in said or "I do" in said or "language model" in said) and _BOILERPLATE.search(said) is not None


def _is_given(prompt: str, answer: str) -> bool:
    """Whether a prompt ends with its answer, named as such."""
    if not answer:
        return False
    ending = prompt[-len(answer) - 100 :].rstrip(" \t\n.)]\"'")
    stem = answer.rstrip(" .)]\"'")
    return bool(stem) and ending.endswith(stem) and _GIVEN.search(ending[: -len(stem)].rstrip("\"'([ ")) is not None


def _cuts(said: str) -> Iterator[str]:
    """Signs that an answer was cut off."""
    if "```" in said or "~~~" in said:
        fences = [found[:3] for found in _FENCE.findall(said)]
        if fences.count("```") % 2 or fences.count("~~~") % 2:
            yield "open_code_block"
            return
    text = said.rstrip()
    if not text:
        return
    if text[0] in "{[" and text[-1] not in "}]" and _ends_within_json(text):
        yield "cut_json"
        return
    last = text[-1]
    if len(text) < _LEAST_SENTENCE or not (last.isalpha() or last in ",("):
        return
    # A list of words or a poem may end on any of these; a sentence of some length does not.
    line = text[text.rfind("\n") + 1 :]
    if len(line) >= _LEAST_SENTENCE // 2 and (last in ",(" or line.rpartition(" ")[2] in _OPEN_WORDS):
        yield "cut_sentence"


def _ends_within_json(text: str) -> bool:
    try:
        json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError as error:
        return error.pos >= len(text) or error.msg.startswith("Unterminated string")
    except RecursionError:
        return False
    return False
