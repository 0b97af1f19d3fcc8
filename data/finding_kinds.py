"""Every kind of finding: its id, how grave it is, the sentence, the fix, and the rule of the doctrine behind it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warn", "info"]
BAD_ROW = "bad_row"
_ONE_OR_MORE = re.compile(r"\{([^|{}]*)\|([^|{}]*)\}")


@dataclass(frozen=True, slots=True)
class FindingKind:
    """A kind of finding.

    Attributes:
        severity: ``error`` forbids training.
        message: What follows the count; ``{row|rows}`` is the word for one and the word for more.
        fix: What to do.
        rule: The rule that says why, if there is one.
    """

    severity: Severity
    message: str
    fix: str
    rule: str | None = None

    def sentence(self, count: int) -> str:
        """The message with its count."""
        return f"{count:,} {_ONE_OR_MORE.sub(lambda forms: forms[1 if count == 1 else 2], self.message)}"


_ROWS_HOLD = "{row holds|rows hold}"
_PERSONAL = "Remove the rows or replace what is personal, unless it is public and meant"
_SECRET = "Revoke it and remove the rows: a model can repeat it"
# What is looked for in the rows of a method: for pairs nothing that takes the whole file; for RL the words of prompts.
SUPERVISED_ONLY = frozenset({"one_answer", "answer_cap", "length_outlier", "other_language"})
IN_PROMPTS = frozenset(
    {
        "exact_duplicate", "near_duplicate", "truncated", "replacement_character", "mojibake", "control_character",
        "chat_marker", "template_echo", "placeholder", "email_address", "phone_number", "ip_address", "iban",
        "payment_card", "secret_key", "private_key",
    }
)  # fmt: skip
# The ids are stable: prepare_dataset removes rows by them.
KINDS: Mapping[str, FindingKind] = {
    "exact_duplicate": FindingKind(
        "warn", "{row repeats|rows repeat} an earlier row exactly", "Remove the repeats", "data.duplicates"
    ),
    "near_duplicate": FindingKind(
        "warn", "{row nearly repeats|rows nearly repeat} an earlier row", "Keep one of each", "data.duplicates"
    ),
    "in_val": FindingKind(
        "warn",
        "{row is|rows are} in the validation file too: its loss will look too good",
        "Remove them",
        "data.leakage",
    ),
    "truncated": FindingKind(
        "warn", "{row is|rows are} cut at max_seq_len", "Raise max_seq_len or split them", "data.truncation"
    ),
    "nothing_left": FindingKind(
        "error",
        "{row loses|rows lose} all trained tokens at max_seq_len",
        "Raise max_seq_len or shorten the prompts",
        "data.truncation",
    ),
    "mixed_formats": FindingKind(
        "info", "{row has|rows have} another format than the first row", "Harmless if intended"
    ),
    "last_turn_only": FindingKind(
        "info",
        "{conversation is trained on its|conversations are trained on their} last answer only: the chat template "
        "rewrites earlier ones as history",
        "Split them into one row per answer to train on all",
    ),
    "no_end_token": FindingKind(
        "warn",
        "{row trains|rows train} no token that ends the answer: the chat template writes none, and the model will not "
        "learn to stop",
        "Use a template that ends each turn with a special token, or name a renderer",
        "data.end_token",
    ),
    "other_end_token": FindingKind(
        "info",
        "{row ends|rows end} answers with a token at which generation_config.json does not stop: other programs will "
        "go on there",
        "Add its id to eos_token_id in the exported model",
        "data.end_token",
    ),
    "think_deleted": FindingKind(
        "warn",
        "{answer loses its|answers lose their} <think>...</think>: the chat template deletes it, and the trained text "
        "lacks it",
        "Use a template or renderer that keeps the reasoning, or remove it from the data",
    ),
    "no_thinking": FindingKind(
        "warn",
        "{answer has|answers have} no reasoning, though the generation prompt opens <think>: the model learns to close "
        "it at once",
        "Begin them with <think>...</think>, or use a model or renderer that does not think",
    ),
    "reasoning_dropped": FindingKind(
        "warn",
        "{row loses|rows lose} the reasoning of an answer: the chat template does not write it",
        "Use a template or renderer that does, or write it into the content as <think>...</think>",
    ),
    "tools_dropped": FindingKind(
        "warn",
        "{row declares|rows declare} tools that the chat template does not write: the model never sees them",
        "Use a model or renderer with tools, or describe them in the system turn",
    ),
    "rewritten_text": FindingKind(
        "warn",
        "{row has|rows have} a text that the chat template leaves out or writes otherwise",
        "Compare a row with its rendered form; some templates take no system turn, or escape what tools say",
    ),
    "control_text": FindingKind(
        "warn",
        "{row spells|rows spell} a control token of the model in a prompt: it is kept as text, and ends no turn",
        "Remove it if it is a leftover of another chat format",
        "data.control_tokens",
    ),
    "control_tokens": FindingKind(
        "warn",
        "{row spells|rows spell} a control token of the model in a prompt: with this renderer it is a real one and can "
        "forge a turn",
        "Remove it from the text",
        "data.control_tokens",
    ),
    "control_in_answer": FindingKind(
        "warn",
        "{answer spells|answers spell} a control token of the model, which is trained as a real one",
        "Remove it: the template writes what ends a turn",
        "data.control_tokens",
    ),
    "not_finite": FindingKind(
        "warn",
        f"{_ROWS_HOLD} NaN or Infinity, which is not JSON: other programs refuse them",
        "Write null or a number",
    ),
    "prompt_cut": FindingKind(
        "warn",
        "{pair repeats|pairs repeat} the prompt at the head of both answers: it is cut off there",
        "Remove it from the answers",
        "data.prompt_repeated",
    ),
    "prompt_repeated": FindingKind(
        "warn",
        "{answer begins with its|answers begin with their} own prompt, which is trained too",
        "Remove it from the answers if that is a mistake",
        "data.prompt_repeated",
    ),
    "unwanted_answer": FindingKind(
        "warn",
        "{row has|rows have} label: false, which elsewhere marks an answer to avoid: here it is imitated",
        "Remove them, or make preference pairs of answers to one prompt",
    ),
    "prompt_weight": FindingKind(
        "warn",
        "{row asks|rows ask} for loss on a turn that is not the assistant's: only answers are trained",
        "Remove that weight",
    ),
    "developer_turn": FindingKind(
        "info", "{row has|rows have} a developer turn, which is read as the system turn", "Nothing to do"
    ),
    "null_arguments": FindingKind(
        "warn",
        "{row has|rows have} tool calls with null arguments, which are trained as they are",
        "Leave them out where a table padded the rows with the arguments of other tools",
    ),
    "bad_arguments": FindingKind(
        "warn",
        "{row has|rows have} tool calls whose arguments are not JSON",
        "Correct them: the model learns what is there",
    ),
    "replacement_character": FindingKind(
        "warn", f"{_ROWS_HOLD} U+FFFD: text was lost in decoding", "Decode the source again", "data.encoding"
    ),
    "mojibake": FindingKind(
        "warn", "{row looks|rows look} like UTF-8 read as Latin-1", "Decode the source as UTF-8", "data.encoding"
    ),
    "chat_marker": FindingKind(
        "warn",
        f"{_ROWS_HOLD} the markers of a chat format as text, such as <|im_end|> or </s> at an end",
        "Remove them",
        "data.control_tokens",
    ),
    "control_character": FindingKind("warn", f"{_ROWS_HOLD} control characters", "Strip them", "data.encoding"),
    "not_round_trip": FindingKind(
        "warn",
        "{row does|rows do} not come back from {its|their} tokens unchanged",
        "The tokenizer does not know their characters",
        "data.encoding",
    ),
    "contradictory_pair": FindingKind(
        "warn", "{pair contradicts|pairs contradict} an earlier one", "Keep one of each", "data.duplicates"
    ),
    "repeated_pair": FindingKind(
        "warn", "{pair repeats|pairs repeat} an earlier one", "Remove the repeats", "data.duplicates"
    ),
    "prompt_in_val": FindingKind(
        "warn", "{prompt is|prompts are} in the validation file too", "Remove them", "data.leakage"
    ),
    "truncated_pair": FindingKind(
        "warn",
        "{pair has|pairs have} a side that is cut at max_seq_len",
        "Raise max_seq_len or shorten the prompts",
        "data.truncation",
    ),
    "template_echo": FindingKind(
        "warn",
        f"{_ROWS_HOLD} the frame of a prompt template, such as ### Instruction: or Alpaca's first sentence",
        "Keep what stands in the frame: the chat template writes its own",
        "data.template_echo",
    ),
    "placeholder": FindingKind(
        "warn",
        f"{_ROWS_HOLD} a hole of a template that was never filled, such as a word in braces",
        "Fill the template again, or remove the rows",
        "data.template_echo",
    ),
    "no_value": FindingKind(
        "warn",
        "{row has|rows have} nan, None or null as a whole question or answer: what a program wrote for nothing",
        "Remove them, unless the word is a label",
        "data.template_echo",
    ),
    "boilerplate": FindingKind(
        "warn",
        "{answer speaks|answers speak} as an AI model of what it is or lacks",
        "Remove those where nobody asked",
        "data.boilerplate",
    ),
    "one_answer": FindingKind(
        "warn",
        "{row has|rows have} an answer that many other prompts have too",
        "Read it: keep a few where it is a default, and more only where it is right",
        "data.one_answer",
    ),
    "cut_sentence": FindingKind(
        "warn",
        "{answer ends|answers end} within a sentence",
        "Generate or export them again with more tokens, or remove them",
        "data.cut_answer",
    ),
    "open_code_block": FindingKind(
        "warn",
        "{answer opens|answers open} a code block and never {closes|close} it",
        "Close it, or remove the rows that were cut",
        "data.cut_answer",
    ),
    "cut_json": FindingKind(
        "warn", "{answer begins|answers begin} a JSON value and {ends|end} within it", "Remove them", "data.cut_answer"
    ),
    "answer_cap": FindingKind(
        "warn",
        "{answer has|answers have} exactly the greatest length: a limit on tokens may have cut them",
        "Generate them again with a higher limit, or remove them",
        "data.cut_answer",
    ),
    "label_leak": FindingKind(
        "warn",
        "{prompt ends|prompts end} with {its|their} own answer, named as such",
        "Take it out of the prompt",
        "data.label_leakage",
    ),
    "other_language": FindingKind(
        "info",
        "{row is|rows are} in another language than the rest",
        "Remove them if they are strays",
        "data.language",
    ),
    "length_outlier": FindingKind(
        "info",
        "{row is|rows are} far longer or shorter than the rest",
        "Look at them: often several documents in one row, or nearly nothing",
        "data.length_outlier",
    ),
    "in_benchmark": FindingKind(
        "warn",
        "{row holds|rows hold} items of a benchmark: its score will look too good",
        "Remove them, or do not report that benchmark",
        "data.leakage.ngram",
    ),
    "email_address": FindingKind("info", f"{_ROWS_HOLD} an e-mail address", _PERSONAL, "data.personal"),
    "phone_number": FindingKind("info", f"{_ROWS_HOLD} a telephone number", _PERSONAL, "data.personal"),
    "ip_address": FindingKind("info", f"{_ROWS_HOLD} a public IP address", _PERSONAL, "data.personal"),
    "iban": FindingKind("warn", f"{_ROWS_HOLD} a valid IBAN", _PERSONAL, "data.personal"),
    "payment_card": FindingKind("warn", f"{_ROWS_HOLD} a valid card number", _PERSONAL, "data.personal"),
    "secret_key": FindingKind("warn", f"{_ROWS_HOLD} a key of a service", _SECRET, "data.secrets"),
    "private_key": FindingKind("warn", f"{_ROWS_HOLD} a private key", _SECRET, "data.secrets"),
}
