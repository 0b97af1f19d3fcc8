"""Personal data and keys are told by their kind, with their checksums, and never repeated."""

import json
from pathlib import Path

import pytest

from sota_ml_researcher.data.check import check_dataset
from sota_ml_researcher.data.personal_data import LONGEST_WORD, personal_kinds

KEY = "ghp_" + "aB3dE5gH7jK9mN1pQ2rS4tU6vW8xY0zA1bC3"
PEM = "-----BEGIN RSA PRIVATE KEY-----\n" + "MIIEpAIBAAKCAQEA" * 4 + "\n-----END RSA PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Write to maria.lopez@uni-lisboa.pt today", "email_address"),
        ("Call +49 30 901820 now", "phone_number"),
        ("Call (415) 867-5309 now", "phone_number"),
        ("Pay to NL91 ABNA 0417 1643 00", "iban"),
        ("Pay to CH9300762011623852957", "iban"),
        ("Card 4539 1488 0343 6467, valid 11/27", "payment_card"),
        ("My credit card is 4539148803436467", "payment_card"),
        ("The server 93.184.216.34 is down", "ip_address"),
        (f"token = {KEY}", "secret_key"),
        ("AKIA" + "QYLPMN5HHHFPZAM2", "secret_key"),
        (PEM, "private_key"),
    ],
)
def test_each_kind_is_found(text: str, kind: str) -> None:
    assert list(personal_kinds(text, LONGEST_WORD)) == [kind]


@pytest.mark.parametrize(
    "text",
    [
        "someone@example.com, you@yourcompany.com, logo@2x.png, git@github.com:me/it.git, @handle",
        "Call 555-0134 or (212) 555-0199, 1-800-FLOWERS, 2020-2021",
        "12 + 345 + 6789012 = 6789369; 10 20 30 40 50 60 70 80",
        "GB82 WEST 1234 5698 7654 32 and NL91 ABNA 0417 1643 01 and AB12 3456 7890 1234",  # an example, a wrong sum
        "4111 1111 1111 1111 and 4539 1488 0343 6468 and 1234 5678 9012 3456",
        "The number 4539148803436467 is large",
        "192.168.0.1, 10.0.0.1, 127.0.0.1, 8.8.8.8, 203.0.113.7, 999.1.1.1, version 11.22.33.44, 1.2.3.4.5",
        "ISBN 978-3-16-148410-0, 3.14159265358979, 2023-04-05T10:20:30.123456Z, order 20230405-000123",
        "export KEY=sk-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx or AKIAIOSFODNN7EXAMPLE",
        "-----BEGIN PRIVATE KEY-----\n...\n-----END PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\n" + "a: " * 500,
        "Donaudampfschifffahrtsgesellschaft",
    ],
)
def test_what_is_nobodys_is_left_alone(text: str) -> None:
    assert list(personal_kinds(text, LONGEST_WORD)) == []


def test_the_report_says_where_and_never_what(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "completion": "fine"} for i in range(3)]
    rows += [{"prompt": "mail", "completion": f"maria.lopez@uni-lisboa.pt {KEY} 4539 1488 0343 6467"}]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = check_dataset(path)
    found = {finding.kind: finding.lines for finding in report.findings}
    assert found == {"email_address": [4], "secret_key": [4], "payment_card": [4]}
    said = json.dumps([finding.model_dump() for finding in report.findings])
    assert "lopez" not in said and KEY not in said and "4539" not in said
