"""Short business documents with a question about each, so that fine-tuning needs no network.

Memos, invoices, tables and letters of a small town, each with a question whose answer is a few
words of the document. The shape is that of DocVQA (Mathew, Karatzas, Jawahar 2021,
arXiv:2007.00398): a long user turn and a short answer, so few tokens are learned from. Conversation
number i is a function of i and its split, whatever was made before it.
"""

import hashlib
import json
from functools import cache
from random import Random

SIZES = {"train": 2000, "validation": 200}
"""How many conversations there are."""

Conversation = dict[str, list[dict[str, str]]]
Facts = dict[str, str]
"""Questions and answers, each a part of the document."""

_NAMES = [
    "Anna",
    "Ben",
    "Clara",
    "David",
    "Emma",
    "Felix",
    "Greta",
    "Hugo",
    "Ida",
    "Jonas",
    "Karin",
    "Leo",
    "Mira",
    "Nils",
    "Olga",
    "Paul",
]
_FAMILIES = ["Berg", "Dahl", "Falk", "Holm", "Lind", "Moss", "Reed", "Stone", "Vale", "West"]
_PLACES = ["garden", "harbour", "market", "museum", "kitchen", "station", "library", "workshop"]
_DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday"]
_MONTHS = ["January", "March", "April", "May", "June", "July", "August", "October"]
_GOODS = [
    "hammers",
    "ladders",
    "shovels",
    "saws",
    "scarves",
    "jackets",
    "gloves",
    "flutes",
    "drums",
    "apples",
    "peaches",
]
_TOPICS = ("repairs", "budget", "new lamps", "old roof", "winter stock", "summer plan")
_FIRMS = ("Red Tool Company", "North Street Shop", "Old Mill Store", "Green Hill Trade")
_REASONS = ("the rain", "the holiday", "a broken pump", "high water", "the late train")
_WEIGHTS = ["small", "large", "heavy", "light"]


def conversation(index: int, split: str) -> Conversation:
    """Conversation number `index` of a split."""
    rng = Random(f"memos:{split}:{index}")
    document, facts = rng.choice((_memo, _invoice, _table, _letter))(rng)
    question = rng.choice(list(facts))
    return exchange(document, question, facts[question])


def conversations(split: str) -> list[Conversation]:
    """All conversations of a split."""
    return [conversation(index, split) for index in range(SIZES[split])]


def exchange(document: str, question: str, answer: str) -> Conversation:
    """A question about a document and its answer, in the form of the published DocVQA set."""
    return {
        "messages": [
            {"role": "user", "content": f"Document:\n{document}\n\nQuestion: {question}"},
            {"role": "assistant", "content": answer},
        ]
    }


@cache
def digest() -> str:
    """SHA-256 over all conversations: machines that agree on it have the same ones."""
    text = json.dumps([conversations(split) for split in SIZES], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _memo(rng: Random) -> tuple[str, Facts]:
    to, sender, date, topic = _person(rng), _person(rng), _date(rng), rng.choice(_TOPICS)
    day, place, hour = rng.choice(_DAYS), rng.choice(_PLACES), str(rng.randint(8, 17))
    goods, reason = rng.choice(_GOODS), rng.choice(_REASONS)
    cost = str(rng.randint(20, 900))
    head = ["MEMO", f"To: {to}", f"From: {sender}", f"Date: {date}", f"Subject: {topic}", ""]
    facts = {
        "To whom is the memo sent?": to,
        "Who wrote the memo?": sender,
        "What is the date of the memo?": date,
        "What is the subject of the memo?": topic,
        "On which day is the meeting?": day,
        "Where is the meeting?": place,
    }
    body = [f"The meeting about the {topic} is on {day} at {hour} in the {place}."]
    more = {
        f"The work stopped because of {reason}.": {"Why did the work stop?": reason},
        f"Please bring the list of {goods}.": {"Of what is there a list?": goods},
        f"The cost must stay below {cost} crowns.": {"How many crowns is the limit?": cost},
        "Tell me if you cannot come.": {},
    }
    for sentence in rng.sample(list(more), rng.randint(1, 4)):
        body.append(sentence)
        facts |= more[sentence]
    return "\n".join([*head, " ".join(body)]), facts


def _invoice(rng: Random) -> tuple[str, Facts]:
    firm, person, date = rng.choice(_FIRMS), _person(rng), _date(rng)
    number, days = str(rng.randint(1000, 9999)), rng.choice(("10", "14", "30", "60"))
    lines, total, facts = [], 0, {}
    for goods in rng.sample(_GOODS, rng.randint(2, 5)):
        count, price = rng.randint(2, 20), rng.randint(1, 30)
        total += count * price
        lines.append(f"{goods}: {count} at {price} = {count * price}")
        facts[f"How many {goods} were sold?"] = str(count)
        facts[f"What is the sum for the {goods}?"] = str(count * price)
    facts |= {
        "What is the number of the invoice?": number,
        "Which company sent the invoice?": firm,
        "Who has to pay?": person,
        "What is the date of the invoice?": date,
        "What is the total?": str(total),
        "Within how many days is it due?": days,
    }
    head = [firm, f"INVOICE {number}", f"Date: {date}", f"Bill to: {person}", ""]
    tail = [f"Total: {total}", f"Please pay within {days} days."]
    return "\n".join([*head, *lines, *tail]), facts


def _table(rng: Random) -> tuple[str, Facts]:
    place, month, year = rng.choice(_PLACES), rng.choice(_MONTHS), str(_year(rng))
    columns = rng.sample(_DAYS, rng.randint(2, 3))
    facts = {"Of which month is the table?": month, "Of which year is the table?": year}
    lines = []
    for goods in rng.sample(_GOODS, rng.randint(3, 5)):
        cells = [str(rng.randint(1, 99)) for _ in columns]
        lines.append(" | ".join([goods, *cells]))
        for column, cell in zip(columns, cells, strict=True):
            facts[f"How many {goods} were sold on {column}?"] = cell
    person = _person(rng)
    facts["Who counted?"] = person
    head = [f"Sales at the {place}, {month} {year}", " | ".join(["goods", *columns])]
    return "\n".join([*head, *lines, f"Counted by {person}"]), facts


def _letter(rng: Random) -> tuple[str, Facts]:
    firm, to, sender, date = rng.choice(_FIRMS), rng.choice(_NAMES), _person(rng), _date(rng)
    count, goods, weight = str(rng.randint(2, 60)), rng.choice(_GOODS), rng.choice(_WEIGHTS)
    day, place, reason = rng.choice(_DAYS), rng.choice(_PLACES), rng.choice(_REASONS)
    order = f"{count} {weight} {goods}"
    facts = {
        "Who signed the letter?": sender,
        "To whom is the letter written?": to,
        "What is the date of the letter?": date,
        "What was ordered?": order,
        "On which day will it be sent?": day,
        "Where will it be brought?": place,
    }
    body = [f"Thank you for your order of {order}."]
    if rng.random() < 0.6:
        body.append(f"It is late because of {reason}.")
        facts["Why is it late?"] = reason
    body.append(f"We will send it on {day} and bring it to the {place}.")
    if rng.random() < 0.6:
        body.append("Please write to us if a part is missing.")
    head = [firm, date, "", f"Dear {to},", ""]
    return "\n".join([*head, " ".join(body), "", "Yours truly,", sender]), facts


def _person(rng: Random) -> str:
    return f"{rng.choice(_NAMES)} {rng.choice(_FAMILIES)}"


def _date(rng: Random) -> str:
    return f"{rng.randint(1, 28)} {rng.choice(_MONTHS)} {_year(rng)}"


def _year(rng: Random) -> int:
    return rng.randint(1960, 1999)
