"""Personal data and keys in texts, by kind: what was found is counted, and never kept or shown."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping

from ..core.redaction import keys_in

# Texts without a run of so many digits, separators aside, hold no number that could be anybody's.
_DIGITS = b"0" * 7
_TO_ZERO = bytes(48 if 48 <= i < 58 else 120 for i in range(256))
_SEPARATORS = b" -.()/+"
_EMAIL = re.compile(
    r"(?<![\w.+@/:-])[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@((?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24})(?![\w@-]|:\w)"
)
# Nobody's: reserved for examples (RFC 2606), and what people write in their place.
_NOBODYS = re.compile(
    r"(?:^|\.)(?:example[a-z0-9-]*|test|invalid|localhost|local)(?:\.[a-z]+)?$"
    r"|^(?:your?-?(?:domain|company|email|business|website|org)|my-?(?:domain|company|email)|domain|company|email|mail"
    r"|abc|xyz|foo|bar|acme|website|server|host|sample|xyzcompany|abccompany)\.[a-z.]+$"
    r"|\.(?:png|jpe?g|gif|svg|webp|js|css|py|md)$"
)
_PHONE = re.compile(
    r"(?<![\w+./)-])(?:\+[1-9]\d{0,2}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]\d{2,8}){1,4}"
    r"|\(?[2-9]\d{2}\)?(?:(?<=\)) ?|[.-])[2-9]\d{2}[.-]\d{4})(?![\w-]|\.\d)"
)
# 555-0100 to 555-0199 are set aside for fiction.
_FICTIONAL = re.compile(r"555\D?01\d{2}$|555\D?1234$|123\D?4567$|(\d)\1{6}$")
_IBAN = re.compile(r"(?<!\w)([A-Z]{2})(\d{2})((?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?)(?!\w)")
_IBAN_LENGTHS: Mapping[str, int] = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BR": 29, "CH": 21,
    "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18, "FR": 27,
    "GB": 22, "GE": 22, "GI": 23, "GR": 27, "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IS": 26, "IT": 27, "KW": 30,
    "KZ": 20, "LB": 28, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "MC": 27, "MD": 24, "ME": 22, "MK": 19, "MT": 31,
    "NL": 18, "NO": 15, "PK": 24, "PL": 28, "PT": 25, "QA": 29, "RO": 24, "RS": 22, "SA": 24, "SE": 24, "SI": 19,
    "SK": 24, "SM": 27, "TN": 24, "TR": 26, "UA": 29, "XK": 20,
}  # fmt: skip
# The examples of standards and documentation.
_SAMPLE_IBANS = frozenset({"GB82WEST12345698765432", "DE89370400440532013000", "FR1420041010050500013M02606"})
_SAMPLE_CARDS = frozenset(
    {
        "4111111111111111", "4242424242424242", "4012888888881881", "4000056655665556", "5555555555554444",
        "5105105105105100", "378282246310005", "371449635398431", "6011111111111117", "6011000990139424",
        "3530111333300000", "30569309025904", "4000000000000002", "1234567812345670",
    }
)  # fmt: skip
_CARD = re.compile(
    r"(?<![\w.+-])(?:\d{4}([ -])\d{4}\1\d{4}\1\d{4}|3[47]\d{2}([ -])\d{6}\2\d{5}|\d{13,19})(?![\w-]|\.\d)"
)
_CARD_ISSUERS = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|5[1-5]\d{14}|2(?:2[2-9]|[3-6]\d|7[01])\d{13}|3[47]\d{13}|6(?:011|5\d\d|4[4-9]\d)\d{12}"
    r"|35(?:2[89]|[3-8]\d)\d{12}|3(?:0[0-5]|[68]\d)\d{11}"
)
_ABOUT_CARDS = re.compile(r"(?i)card|visa|amex|credit|debit|cvv|expir")
_IP = re.compile(r"(?<![\w.:/-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)")
_ABOUT_VERSIONS = re.compile(r"(?i)(?:version|release|build|firmware|\bv|\bver\.?|section|chapter)\W{0,3}$")
_RESOLVERS = frozenset({"8.8.8.8", "8.8.4.4", "1.1.1.1", "1.0.0.1", "9.9.9.9", "208.67.222.222", "208.67.220.220"})
_LEAST_KEY_WORD = 16
# For texts whose words nobody measured.
LONGEST_WORD = 10**6
# A key of a service is at least so long, with so many different characters; what people write in its place is not.
_SHORTEST_KEY, _FEWEST_DIFFERENT = 20, 10
_PRIVATE_KEY = re.compile(
    r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----\s+(?:[\w-]+: [^\n]*\n\s*)*[A-Za-z0-9+/=]{40}"
)


def personal_kinds(text: str, longest_word: int) -> Iterator[str]:
    """The kinds of personal data and keys in a text.

    Args:
        text: The text.
        longest_word: Bytes of its longest word (`words.Words.longest`): a key is longer than a word of most languages.
    """
    if "@" in text and any(_NOBODYS.search(found.lower()) is None for found in _EMAIL.findall(text)):
        yield "email_address"
    if longest_word >= _LEAST_KEY_WORD and any(map(_is_key, keys_in(text))):
        yield "secret_key"
    if "PRIVATE KEY" in text and _PRIVATE_KEY.search(text):
        yield "private_key"
    if _DIGITS in text.encode("utf-8", "surrogatepass").translate(_TO_ZERO, _SEPARATORS):
        yield from _numbers(text)


def _is_key(key: str) -> bool:
    """Whether it is as long and as random as keys are."""
    is_random = len(set(key)) >= _FEWEST_DIFFERENT and any(map(str.isdigit, key))
    return len(key) >= _SHORTEST_KEY and is_random and not key.endswith("EXAMPLE")


def _numbers(text: str) -> Iterator[str]:
    if any(_is_phone(match.group()) for match in _PHONE.finditer(text)):
        yield "phone_number"
    if any(_is_iban(*match.groups()) for match in _IBAN.finditer(text)):
        yield "iban"
    if any(_is_card(match, text) for match in _CARD.finditer(text)):
        yield "payment_card"
    if any(_is_public(match, text) for match in _IP.finditer(text)):
        yield "ip_address"


def _is_phone(found: str) -> bool:
    digits = re.sub(r"\D", "", found)
    return 9 <= len(digits) <= 15 and _FICTIONAL.search(digits) is None


def _is_iban(country: str, check: str, rest: str) -> bool:
    """Whether it has its country's length and the checksum of ISO 13616 (modulo 97)."""
    account = rest.replace(" ", "")
    iban = country + check + account
    if len(iban) != _IBAN_LENGTHS.get(country) or iban in _SAMPLE_IBANS:
        return False
    return int("".join(str(int(c, 36)) for c in account + country + check)) % 97 == 1


def _is_card(match: re.Match[str], text: str) -> bool:
    """Whether it is the number of a known issuer with Luhn's checksum; bare digits need a word about cards."""
    found = match.group()
    digits = re.sub(r"\D", "", found)
    if not _CARD_ISSUERS.fullmatch(digits) or digits in _SAMPLE_CARDS:
        return False
    doubled = [int(d) * (1 + i % 2) for i, d in enumerate(reversed(digits))]
    if sum(d - 9 * (d > 9) for d in doubled) % 10:
        return False
    return digits != found or _ABOUT_CARDS.search(text[max(0, match.start() - 80) : match.end() + 40]) is not None


def _is_public(match: re.Match[str], text: str) -> bool:
    """Whether it is an address of the public Internet, and no version number or public resolver."""
    found = match.group()
    try:
        address = ipaddress.IPv4Address(found)
    except ValueError:
        return False
    before = text[max(0, match.start() - 12) : match.start()]
    return address.is_global and found not in _RESOLVERS and _ABOUT_VERSIONS.search(before) is None
