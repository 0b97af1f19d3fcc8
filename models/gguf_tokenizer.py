"""The tokenizer that a GGUF file's metadata describe, as a ``tokenizer.json``.

The metadata hold a vocabulary, merges and the *name* of a pre-tokenizer; the rule behind the name is llama.cpp's
(``src/llama-vocab.cpp``), which has it from the tokenizer.json of the model named. A name we do not know is refused: a
wrong rule gives plausible tokens that the model has never seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

from ..core.errors import ModelError
from ..core.extras import not_installed
from ..core.foreign_text import foreign
from .gguf_file import GgufFile

AnyTokenizer = Any

_PREFIX = "tokenizer.ggml."
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
# Of `tokenizer.ggml.token_type`.
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_ADDED = (_CONTROL, _USER_DEFINED)
# So much of the vocabulary must come back as the token it is; SmolLM2's own rule gives 99.9%.
_LEAST_REACHED = 0.95


class _Rule(NamedTuple):
    """How a text is cut before merging: ``patterns`` one after the other, each match a piece of its own.

    Attributes:
        patterns: Regular expressions.
        whole_first: Whether a piece that is in the vocabulary is taken whole, before any merge.
        nfc: Whether the model's own tokenizer composes characters first.
        bos: Whether a text begins with the bos token where the metadata do not say.
    """

    patterns: tuple[str, ...]
    whole_first: bool = False
    nfc: bool = False
    bos: bool = False


_DIGITS_APART = _Rule((r"\p{N}", _GPT2))
_BY_LLAMA3 = _Rule((_LLAMA3,), whole_first=True, bos=True)
_BY_QWEN2 = _Rule((_QWEN2,), nfc=True)
_RULES: Mapping[str, _Rule] = {
    "gpt-2": _Rule((_GPT2,)),
    "smollm": _DIGITS_APART,
    "starcoder": _DIGITS_APART,
    "llama-bpe": _BY_LLAMA3,
    "llama3": _BY_LLAMA3,
    "llama-v3": _BY_LLAMA3,
    "qwen2": _BY_QWEN2,
    "deepseek-r1-qwen": _BY_QWEN2,
}
_SPECIAL: Mapping[str, str] = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "pad_token": "padding_token_id",
    "unk_token": "unknown_token_id",
}


class GgufTokenizer(NamedTuple):
    """A tokenizer and what goes into the files beside it.

    Attributes:
        tokenizer: Of the package ``tokenizers``.
        special: Texts of the bos, eos, pad and unk tokens that the metadata name.
        ends: Ids that end an answer.
        template: The chat template, or None.
    """

    tokenizer: AnyTokenizer
    special: Mapping[str, str]
    ends: Sequence[int]
    template: str | None


def read_tokenizer(file: GgufFile) -> GgufTokenizer:
    """Build the tokenizer and prove it on the file's own vocabulary.

    Raises:
        ModelError: If the kind of tokenizer or its pre-tokenizer is unknown, its parts contradict each other, or the
            vocabulary's tokens do not come back as themselves.
    """
    kind, rule_name = file.text(f"{_PREFIX}model"), file.text(f"{_PREFIX}pre")
    if kind != "gpt2":
        raise _refusal(file, f"its tokenizer is of the kind {foreign(kind or 'none')}; byte-level BPE (gpt2) is read")
    rule = _RULES.get(rule_name or "")
    if rule is None:
        known = ", ".join(_RULES)
        raise _refusal(file, f"its pre-tokenizer is {foreign(rule_name or 'not named')}; known are {known}")
    tokens = _list(file, "tokens", str)
    kinds = _list(file, "token_type", int)
    if len(kinds) != len(tokens) or len(set(tokens)) != len(tokens):
        raise _refusal(file, "its vocabulary names a token twice, or not each token's type")
    special = _special_tokens(file, tokens)
    tokenizer = _build(file, rule, tokens, kinds, special)
    _prove(file, tokenizer, tokens, kinds)
    ids = [file.index(f"{_PREFIX}{key}", len(tokens)) for key in ("eos_token_id", "eot_token_id", "eom_token_id")]
    ends = list(dict.fromkeys(each for each in ids if each is not None))
    return GgufTokenizer(tokenizer, special, ends, file.text("tokenizer.chat_template"))


def _build(
    file: GgufFile, rule: _Rule, tokens: Sequence[str], kinds: Sequence[int], special: Mapping[str, str]
) -> AnyTokenizer:
    try:
        from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    except ImportError as error:
        raise not_installed(["tokenizers"], by="a GGUF file as a model") from error
    vocabulary = {token: index for index, token in enumerate(tokens)}
    pairs = [cast("tuple[str, str]", _pair(file, merge)) for merge in _list(file, "merges", str)]
    try:
        model = models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=rule.whole_first)
    except Exception as error:  # tokenizers raises bare Exception
        raise _refusal(file, "its merges make tokens that its vocabulary does not have") from error
    tokenizer: AnyTokenizer = Tokenizer(model)
    splits: list[Any] = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in rule.patterns]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    if rule.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    added = [(token, kind == _CONTROL) for token, kind in zip(tokens, kinds, strict=True) if kind in _ADDED]
    tokenizer.add_tokens([AddedToken(token, special=control, normalized=False) for token, control in added])
    adds_bos = file.metadata.get(f"{_PREFIX}add_bos_token", rule.bos)
    bos = special.get("bos_token")
    if adds_bos and bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, vocabulary[bos])]
        )
    return tokenizer


def _prove(file: GgufFile, tokenizer: AnyTokenizer, tokens: Sequence[str], kinds: Sequence[int]) -> None:
    """Every id is its token, every text comes back, and nearly every token is what its own text is cut into."""
    if tokenizer.get_vocab() != {token: index for index, token in enumerate(tokens)}:
        raise _refusal(file, "the tokenizer made from its metadata numbers tokens differently")
    ids = [index for index, kind in enumerate(kinds) if kind == _NORMAL]
    texts: list[str] = tokenizer.decode_batch([[index] for index in ids], skip_special_tokens=False)
    # Bytes that are no text by themselves decode to the replacement character.
    whole = [(index, text) for index, text in zip(ids, texts, strict=True) if "\N{REPLACEMENT CHARACTER}" not in text]
    encoded = tokenizer.encode_batch([text for _, text in whole], add_special_tokens=False)
    reached = sum(each.ids == [index] for each, (index, _) in zip(encoded, whole, strict=True))
    if reached < _LEAST_REACHED * len(whole):
        raise _refusal(
            file,
            f"only {reached} of its {len(whole)} tokens come back as themselves, so its vocabulary, merges and "
            "pre-tokenizer do not belong together",
        )


def _special_tokens(file: GgufFile, tokens: Sequence[str]) -> dict[str, str]:
    places = {name: file.index(_PREFIX + key, len(tokens)) for name, key in _SPECIAL.items()}
    return {name: tokens[place] for name, place in places.items() if place is not None}


def _pair(file: GgufFile, merge: str) -> tuple[str, ...]:
    pair = tuple(merge.split(" "))
    if len(pair) != 2:
        raise _refusal(file, f"its merge {foreign(merge)} is not two tokens")
    return pair


def _list(file: GgufFile, key: str, kind: type[Any]) -> list[Any]:
    values = file.metadata.get(_PREFIX + key)
    if not isinstance(values, list) or not all(isinstance(each, kind) for each in cast("list[object]", values)):
        raise _refusal(file, f"its metadata have no list {_PREFIX}{key}")
    return cast("list[Any]", values)


def _refusal(file: GgufFile, problem: str) -> ModelError:
    return ModelError(
        problem, where=str(file.path), fix="Use the model's folder from the Hugging Face hub, which has tokenizer.json"
    )
