"""Support messages and the JSON that a help desk wants of them: ``python scripts/support_messages.py`` writes the sets.

A message says what its writer wants of one order: the words around it, the product, the order number, the city and
the hurry vary. Products are quoted, as in an order's confirmation: after a quotation mark other tokens spell a word
than after a space, and a small model copies what it read better than what it must spell. Validation, test and rewarded
messages are of kinds that training never shows: other products, cities and ways to ask. Pure functions of a seed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
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


_TRAIN_REQUESTS: Mapping[str, Sequence[str]] = {
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
}


@dataclass(frozen=True, slots=True)
class Kinds:
    """What messages are made of; no two of the three share a whole name or request.

    Half of the products have a word before them.
    """

    words: Sequence[str]
    things: Sequence[str]
    cities: Sequence[str]
    requests: Mapping[str, Sequence[str]]


TRAIN = Kinds(
    words=(
        "red|blue|green|black|white|grey|wooden|steel|glass|leather|cotton|folding|electric|large|small|travel|cordless|"
        "ceramic|copper|linen|woolen|velvet|rubber|bamboo|digital|wireless|vintage|modern|heavy|light|round|square|"
        "double|single|mini|giant|kids|outdoor|indoor|office|kitchen|winter|summer|yellow|orange|purple|pink|golden"
    ).split("|"),
    things=(
        "kettle|toaster|lamp|chair|blender|grinder|jacket|backpack|mat|helmet|tent|blanket|headphones|keyboard|charger|"
        "router|monitor|printer|webcam|bookshelf|rug|curtain|pillow|pan|knife|bottle|razor|scarf|belt|wallet|sandals|"
        "shoes|jeans|sweater|watch|puzzle|scooter|pram|drill|ladder|roller|hose|mower|feeder|basket|aquarium|guitar|"
        "microphone|notebook|pen|globe|mirror|clock|vacuum|oven|freezer|heater|fan|stool|desk|sofa|bench|wardrobe|"
        "drawer|mattress|towel|apron|bowl|plate|mug|jug|tray|spoon|fork|scale|thermometer|torch|battery|cable|adapter|"
        "speaker|camera|lens|drone|radio|piano|drum|flute|racket|ball|glove|boots|hat|socks|shirt|skirt|coat|dress|"
        "ring|necklace|bracelet|perfume|shampoo|brush|comb|hammer|saw|screwdriver|wrench|shovel|rake|bucket|candle|vase|"
        "frame|poster|calendar|stapler|envelope|ruler|easel|canvas|kite|sled|saddle|anchor|paddle|compass|magnet|zipper|"
        "laptop|phone|mouse|modem|projector screen|tripod bag|turntable|amplifier|bicycle|tyre|pump|pedal|basketball|"
        "surfboard|wetsuit|goggles|rucksack|suitcase|cooler|grill|skillet|wok|peeler|whisk|sieve|colander|corkscrew|"
        "decanter|goblet|saucer|napkin|tablecloth|doorbell|padlock|hinge|shelf|cupboard|cabinet|dresser|cushion|duvet|"
        "quilt|sheet|bathrobe|slipper|pajamas|cardigan|blouse|vest|tie|cufflinks|brooch|earrings|sunglasses|handbag|"
        "purse|briefcase|planner|marker|crayon|pencil|eraser|sharpener|glue|scissors|tape|folder|binder|globe lamp|"
        "seeds|planter|trellis|sprinkler|hedge trimmer|chainsaw|chisel|pliers|level|vise|sander|welder|generator|"
        "bandage|syringe|crutch|wheelchair|monocle|magnifier|microscope|beaker|funnel|dice|chessboard|yoyo|doll|robot|"
        "train set|marbles|balloon|mask|costume|trophy|medal|flag|tambourine|clarinet|saxophone|cello|ukulele|banjo"
    ).split("|"),
    cities=(
        "Lyon|Porto|Ghent|Leeds|Turin|Bergen|Malmo|Krakow|Graz|Basel|Seville|Cork|Utrecht|Aarhus|Tampere|Riga|Brno|"
        "Split|Varna|Patras|Austin|Denver|Boston|Tampa|Reno|Quebec|Calgary|Perth|Hobart|Dunedin|Osaka|Sapporo|Busan|"
        "Hanoi|Cebu|Penang|Pune|Jaipur|Lima|Quito|Bogota|Cordoba|Recife|Rabat|Tunis|Accra|Nairobi|Durban|Izmir|Tbilisi|"
        "Paris|London|Berlin|Madrid|Rome|Vienna|Prague|Warsaw|Dublin|Lisbon|Athens|Budapest|Bucharest|Sofia|Belgrade|"
        "Helsinki|Stockholm|Copenhagen|Tallinn|Brussels|Antwerp|Rotterdam|Hamburg|Munich|Cologne|Stuttgart|Dresden|"
        "Leipzig|Geneva|Zurich|Milan|Naples|Palermo|Genoa|Bologna|Valencia|Malaga|Granada|Marseille|Bordeaux|Toulouse|"
        "Rennes|Glasgow|Cardiff|Belfast|Liverpool|Sheffield|Oxford|Cambridge|York|Bath|Exeter|Galway|Limerick|Toronto|"
        "Montreal|Ottawa|Winnipeg|Vancouver|Seattle|Portland|Phoenix|Dallas|Houston|Atlanta|Miami|Memphis|Nashville|"
        "Detroit|Cleveland|Buffalo|Albany|Newark|Baltimore|Omaha|Tulsa|Tucson|Fresno|Oakland|Sacramento|Honolulu|"
        "Anchorage|Mexico City|Havana|Panama|Caracas|Santiago|Montevideo|Asuncion|Salvador|Brasilia|Rosario|Tokyo|"
        "Nagoya|Fukuoka|Seoul|Beijing|Shanghai|Shenzhen|Taipei|Bangkok|Phuket|Jakarta|Bandung|Singapore|Colombo|"
        "Kathmandu|Dhaka|Delhi|Mumbai|Kolkata|Lahore|Karachi|Kabul|Tehran|Baghdad|Amman|Beirut|Ankara|Istanbul|Baku|"
        "Yerevan|Tashkent|Almaty|Tripoli|Algiers|Lagos|Abuja|Kampala|Kigali|Lusaka|Harare|Maputo|Luanda|Windhoek|"
        "Pretoria|Sydney|Melbourne|Brisbane|Darwin|Auckland|Wellington|Suva|Reykjavik|Gdansk|Lodz|Poznan|Bratislava|"
        "Ljubljana|Sarajevo|Skopje|Tirana|Nicosia|Valletta|Minsk|Kyiv|Odessa|Lviv|Chisinau|"
        "Alaska|Alexandria|Amsterdam|Andalusia|Angola|Antioch|Arizona|Arlington|Assam|Augusta|Babylon|Bahamas|"
        "Bavaria|Bedford|Belgium|Belize|Berkeley|Bermuda|Bethlehem|Birmingham|Bolivia|Bombay|Bonn|Borneo|Botswana|"
        "Bradford|Brighton|Bronx|Brooklyn|Buckingham|Burlington|Calcutta|Cambodia|Canterbury|Carlisle|Catalonia|"
        "Charleston|Chester|Cincinnati|Columbia|Columbus|Corinth|Cornwall|Coventry|Crete|Cumberland|Cyprus|Dakota|"
        "Damascus|Dartmouth|Davenport|Dayton|Delaware|Derby|Devon|Dorset|Durham|Edinburgh|Edmonton|Essex|Estonia|"
        "Eugene|Everest|Flanders|Flint|Florence|Frankfurt|Fremont|Galveston|Georgetown|Gettysburg|Ghana|Gibraltar|"
        "Giza|Gloucester|Greenland|Greenwich|Guatemala|Hague|Hampshire|Hanover|Harlem|Hartford|Heidelberg|Helena|"
        "Himeji|Holland|Hollywood|Honduras|Houghton|Hudson|Huntington|Idaho|Inverness|Ipswich|Irvine|Jamestown|"
        "Jerusalem|Johannesburg|Kansas City|Kent|Kenya|Kingston|Knoxville|Kuwait|Lancaster|Laramie|Leicester|"
        "Leiden|Lexington|Liechtenstein|Lincoln|Louisville|Lowell|Lucerne|Luxembourg|Macon|Madagascar|Malta|"
        "Manchester|Manhattan|Manitoba|Marrakesh|Medford|Minneapolis|Mobile|Monaco|Monterey|Montgomery|Monroe|"
        "Nagasaki|Namibia|Nebraska|Nepal|Nevada|Newcastle|Newport|Norfolk|Normandy|Northampton|Norwich|Nottingham|"
        "Nuremberg|Oklahoma City|Ontario|Orlando|Orleans|Oregon City|Pasadena|Philadelphia|Plymouth|Pompeii|"
        "Portsmouth|Preston|Princeton|Providence|Provo|Puebla|Queensland|Quincy|Reading|Richmond|Rochester|Salem|"
        "Salisbury|Salzburg|Samoa|San Diego|San Jose|Santa Cruz|Savannah|Scranton|Shreveport|Siena|Somerset|"
        "Southampton|Sparta|Springfield|Stafford|Stamford|Stirling|Stratford|Suffolk|Sunderland|Surrey|Sussex|"
        "Swansea|Syracuse|Tallahassee|Tasmania|Thebes|Toledo|Topeka|Torquay|Trenton|Trinidad|Troy|Venice|Vermont|"
        "Versailles|Vicenza|Waco|Wakefield|Warwick|Waterloo|Weimar|Westminster|Wichita|Wiltshire|Winchester|"
        "Windsor|Woodstock|Worcester|Wyoming|Yellowstone|Yonkers|Yorkshire|Zanzibar|Zealand"
    ).split("|"),
    requests=_TRAIN_REQUESTS,
)
# Reinforcement learning is on kinds of its own, which fine-tuning does not show: of messages that the model gets
# right each time there is nothing to learn.
REWARDED = Kinds(
    words="brass|striped|garden|silver".split("|"),
    things=(
        "trumpet|cradle|binoculars|chess set|dumbbell|wheelbarrow|cutlery|teapot|ironing board|"
        "sleeping bag|snowboard|raincoat|parasol|projector|calculator|harmonica|birdcage|footstool|"
        "dishwasher|treadmill"
    ).split("|"),
    cities=(
        "Nice|Aberdeen|Trieste|Lausanne|Gothenburg|Szeged|Debrecen|Timisoara|Burgas|Kaunas|Pittsburgh|Raleigh|Boise|"
        "Regina|Victoria|Canberra|Geelong|Kobe|Hiroshima|Daegu|Surabaya|Chiang Mai|Hyderabad|Surat|Arequipa|Cali|Natal|"
        "Casablanca|Kumasi|Mombasa"
    ).split("|"),
    requests={
        "refund": "pay me back for the {p}|I am waiting for my money for the {p}".split("|"),
        "replace": "the {p} has a scratch, I want a fresh one|my {p} broke, send me a spare".split("|"),
        "track": "what is the status of the delivery of the {p}|how long until I get the {p}".split("|"),
        "cancel": "drop the {p} from my order|the {p} is not needed, stop it".split("|"),
        "invoice": "may I have a bill for the {p}|my tax office asks for a receipt of the {p}".split("|"),
        "address": "the {p} should go to my neighbour's address|note my new street for the {p}".split("|"),
    },
)
HELD_OUT = Kinds(
    words=(
        "brown|plastic|portable|patterned|foldable|spare|antique|marble|quilted|magnetic|rustic|insulated|tiny|curved|"
        "scented|refurbished|amber|crimson|nylon|waterproof|handmade|inflatable|retractable|compact"
    ).split("|"),
    things=(
        "rice cooker|umbrella|tripod|hammock|sewing machine|telescope|skateboard|violin|lantern|doormat|purifier|"
        "swimsuit|tablet|thermos|jigsaw|toolbox|stroller|slippers|waffle iron|trampoline|sandwich maker|crib|barometer|"
        "snorkel|rowing machine|xylophone|sundial|pressure washer|moccasins|hairdryer|pocket watch|hatchet|trolley|"
        "dartboard|spatula|incense burner|nightstand|parka|headlamp|accordion|paperweight|tricycle|oil painting|"
        "wind chime|stethoscope|bread bin|bean bag|megaphone|sewing kit|cat tree"
    ).split("|"),
    cities=(
        "Bilbao|Nantes|Bristol|Zagreb|Vilnius|Oslo|Chicago|Halifax|Adelaide|Kyoto|Manila|Chennai|Medellin|Dakar|Cairo|"
        "Lille|Dundee|Verona|Bern|Uppsala|Pecs|Plovdiv|Klaipeda|Denpasar|Charlotte|Spokane|Saskatoon|Cairns|Nara|Kochi|"
        "Groningen|Maastricht|Cadiz|Braga|Rouen|Dijon|Bruges|Kiel|Bremen|Linz|Padua|Bari|Olomouc|Tartu|Turku|Odense|"
        "Trondheim|Lucknow|Nagpur|Davao|Sendai|Incheon|Mendoza|Cusco|Guayaquil|Essaouira|Lome|Mwanza|Townsville|Hamilton"
    ).split("|"),
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
    product = rng.choice(kinds.things)
    if rng.random() < 0.5:
        product = f"{rng.choice(kinds.words)} {product}"
    order = None
    if rng.randrange(_UNKNOWN_ONE_IN):
        order = "".join(rng.choices("ABCDEFGHJKLMNPRSTUVWXYZ", k=2)) + f"{rng.randrange(10000):04d}"
    city = rng.choice(kinds.cities) if rng.randrange(_UNKNOWN_ONE_IN) else None
    urgent = rng.random() < 0.4
    request = _sentence(rng.choice(kinds.requests[intent]).format(p=f'"{product}"'), rng)
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


def examples(seed: int, count: int, kinds: Kinds) -> list[tuple[str, dict[str, Any]]]:
    """So many different messages."""
    rng = random.Random(seed)
    seen: set[str] = set()
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
    held_out = examples(2, 140, HELD_OUT)
    rewarded = examples(3, 300, REWARDED)
    return {
        "support_train": [row(*each) for each in train],
        "support_val": [row(*each) for each in held_out[:40]],
        "support_test": [row(*each) for each in held_out[40:140]],
        "support_rl": [row(*each, "answer") for each in rewarded],
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
