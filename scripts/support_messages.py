"""Support messages and the JSON that a help desk wants of them: ``python scripts/support_messages.py`` writes the sets.

A message says what its writer wants of one order: the words around it, the product, the order number, the city and
the hurry vary. Validation and test messages are of kinds that training never shows: other products, other cities and
other ways to ask. Pure functions of a seed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "demo" / "data"
SYSTEM = "Turn the message into JSON with the keys intent, product, order, city and urgent."
INTENTS = ("refund", "replace", "track", "cancel", "invoice", "address")
SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "intent": {"enum": list(INTENTS)},
        "product": {"type": "string"},
        "order": {"type": ["string", "null"], "pattern": "^[A-Z]{2}[0-9]{4}$"},
        "city": {"type": ["string", "null"]},
        "urgent": {"type": "boolean"},
    },
    "required": ["intent", "product", "order", "city", "urgent"],
    "additionalProperties": False,
}
_UNKNOWN_ONE_IN = 5


@dataclass(frozen=True, slots=True)
class Kinds:
    """What messages are made of; training and test share none of it but openings, closings and words for hurry."""

    products: Sequence[str]
    cities: Sequence[str]
    requests: Mapping[str, Sequence[str]]


TRAIN = Kinds(
    products=(
        "kettle|toaster|desk lamp|office chair|blender|coffee grinder|rain jacket|backpack|yoga mat|bike helmet|tent|"
        "sleeping bag|headphones|keyboard|phone case|charger|router|monitor|printer|webcam|bookshelf|rug|curtain|"
        "pillow|frying pan|knife set|water bottle|lunch box|hair dryer|razor|scarf|belt|wallet|sandals|running shoes|"
        "jeans|sweater|watch|puzzle|board game|scooter|car seat|pram|drill|ladder|paint roller|garden hose|lawn mower|"
        "bird feeder|dog bed|cat tree|aquarium|guitar|microphone|notebook|fountain pen|globe|mirror|wall clock|vacuum"
    ).split("|"),
    cities=(
        "Lyon|Porto|Ghent|Leeds|Turin|Bergen|Malmo|Krakow|Graz|Basel|Seville|Cork|Utrecht|Aarhus|Tampere|Riga|Brno|"
        "Split|Varna|Patras|Austin|Denver|Boston|Tampa|Reno|Quebec|Calgary|Perth|Hobart|Dunedin|Osaka|Sapporo|Busan|"
        "Hanoi|Cebu|Penang|Pune|Jaipur|Lima|Quito|Bogota|Cordoba|Recife|Rabat|Tunis|Accra|Nairobi|Durban|Izmir|Tbilisi"
    ).split("|"),
    requests={
        "refund": (
            "I want my money back for the {p}|please refund the {p}|the {p} is not what I expected, I would like a "
            "refund|can you return the money for the {p}|I sent the {p} back and still have no refund|give me a refund "
            "for that {p}|how do I get my money back for the {p}|the {p} was too expensive, refund it"
        ).split("|"),
        "replace": (
            "the {p} arrived broken, please send a new one|I need a replacement for the {p}|the {p} stopped working, "
            "can I have another one|you sent the wrong {p}, please exchange it|please swap the {p}, it has a crack|"
            "my {p} is faulty and I want a new one|could you replace the damaged {p}|the {p} does not turn on, send one"
        ).split("|"),
        "track": (
            "where is my {p}|the {p} has not arrived yet|when will the {p} be delivered|I am still waiting for the "
            "{p}|can you tell me where the {p} is|has the {p} been shipped|my {p} was due last week|any news about "
            "the delivery of the {p}"
        ).split("|"),
        "cancel": (
            "please cancel the {p}|I no longer want the {p}, cancel it|I ordered the {p} by mistake|stop the order "
            "of the {p}|I changed my mind about the {p}, do not send it|cancel my purchase of the {p}|can I still "
            "cancel the {p}|I do not need the {p} any more, please cancel"
        ).split("|"),
        "invoice": (
            "I need an invoice for the {p}|please send me the receipt for the {p}|where can I download the bill for "
            "the {p}|my accountant wants the invoice of the {p}|the invoice for the {p} is missing|could you mail me "
            "a receipt of the {p}|I have no bill for the {p}|the receipt for the {p} shows the wrong amount"
        ).split("|"),
        "address": (
            "I moved, please change the address for the {p}|send the {p} to another address|the {p} is going to my "
            "old flat, change the address|can you deliver the {p} to my office instead|the delivery address of the {p} "
            "is wrong|please correct the street for the {p}|I typed the wrong address for the {p}|ship the {p} to my "
            "new home"
        ).split("|"),
    },
)
HELD_OUT = Kinds(
    products=(
        "rice cooker|umbrella|tripod|hammock|space heater|sewing machine|telescope|skateboard|violin|lantern|doormat|"
        "bread knife|air purifier|swimsuit|tablet|floor lamp|mouse pad|thermos|camera bag|jigsaw"
    ).split("|"),
    cities="Bilbao|Nantes|Bristol|Zagreb|Vilnius|Oslo|Chicago|Halifax|Adelaide|Kyoto|Manila|Chennai|Medellin|Dakar|Cairo".split(
        "|"
    ),
    requests={
        "refund": "I am unhappy with the {p} and ask for my money back|a refund of the {p}, please".split("|"),
        "replace": "there is a hole in the {p}, may I have a new one|the {p} came damaged, I need another".split("|"),
        "track": "do you know when the {p} will arrive|the {p} is late, where is it".split("|"),
        "cancel": "take back my order, I do not want the {p}|is it too late to cancel the {p}".split("|"),
        "invoice": "a copy of the invoice for the {p} would help me|I lost the receipt of the {p}".split("|"),
        "address": "my address has changed, so send the {p} there|use my work address for the {p}".split("|"),
    },
)
_OPENINGS = "|Hi, |Hello, |Good morning, |Dear team, |Hey, |Hi there, |Excuse me, ".split("|")
_CLOSINGS = "|Thanks.|Thank you.|Best regards.|Cheers.|Kind regards.".split("|")
_HURRY = "It is urgent.|I need this today.|Please hurry.|As soon as possible, please.|This cannot wait.".split("|")
_ORDERS = "order {o}|my order number is {o}|order no. {o}|it is order {o}|the number is {o}".split("|")
_CITIES = "I live in {c}|I am writing from {c}|delivery to {c}|it goes to {c}|I am in {c}".split("|")


def example(rng: random.Random, kinds: Kinds) -> tuple[str, dict[str, Any]]:
    """One message and what it says."""
    intent = rng.choice(INTENTS)
    product = rng.choice(kinds.products)
    order = None
    if rng.randrange(_UNKNOWN_ONE_IN):
        order = "".join(rng.choices("ABCDEFGHJKLMNPRSTUVWXYZ", k=2)) + f"{rng.randrange(10000):04d}"
    city = rng.choice(kinds.cities) if rng.randrange(_UNKNOWN_ONE_IN) else None
    urgent = rng.random() < 0.4
    request = _sentence(rng.choice(kinds.requests[intent]).format(p=product), rng)
    details = [rng.choice(_ORDERS).format(o=order)] if order else []
    details += [rng.choice(_CITIES).format(c=city)] if city else []
    rng.shuffle(details)
    parts = [request, *(_capital(each) + "." for each in details)]
    if urgent:
        parts.insert(rng.randrange(1, len(parts) + 1), rng.choice(_HURRY))
    opening, closing = rng.choice(_OPENINGS), rng.choice(_CLOSINGS)
    text = opening + (parts[0] if opening else _capital(parts[0]))
    message = " ".join([text, *parts[1:], *([closing] if closing else [])])
    return message, {"intent": intent, "product": product, "order": order, "city": city, "urgent": urgent}


def _sentence(request: str, rng: random.Random) -> str:
    is_question = request.startswith(("where", "when", "can", "could", "how", "has", "do you", "is it", "any news"))
    return request + ("?" if is_question else rng.choice([".", ".", "!"]))


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def examples(seed: int, count: int, kinds: Kinds, without: Iterable[str] = ()) -> list[tuple[str, dict[str, Any]]]:
    """So many different messages, none of them in ``without``."""
    rng = random.Random(seed)
    seen = set(without)
    found: list[tuple[str, dict[str, Any]]] = []
    while len(found) < count:
        message, said = example(rng, kinds)
        if message not in seen:
            seen.add(message)
            found.append((message, said))
    return found


def row(message: str, said: Mapping[str, Any], answer_key: str = "completion") -> dict[str, str]:
    """A row to train on or to test by; rows for reinforcement learning have the right answer as ``answer``."""
    return {"system": SYSTEM, "prompt": message, answer_key: json.dumps(said)}


def all_sets() -> dict[str, list[dict[str, str]]]:
    """Every file of the task, by its name in ``demo/data``."""
    train = examples(1, 2400, TRAIN)
    held_out = examples(2, 200, HELD_OUT)
    rewarded = examples(3, 300, TRAIN, without=[message for message, _ in train])
    return {
        "support_train": [row(*each) for each in train],
        "support_val": [row(*each) for each in held_out[:60]],
        "support_test": [row(*each) for each in held_out[60:160]],
        "support_rl": [row(*each, "answer") for each in rewarded],
        "support_rl_val": [row(*each, "answer") for each in held_out[160:]],
    }


def main() -> None:
    """Write ``demo/data/support_*.jsonl`` and the schema of the answers."""
    (FOLDER / "support_schema.json").write_text(json.dumps(SCHEMA, indent=2) + "\n")
    for name, rows in all_sets().items():
        path = FOLDER / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        print(f"{path.name}: {len(rows)} rows, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
