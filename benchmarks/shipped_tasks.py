"""Makes the task folders of the shipped prompts from data whose licence allows it.

    python benchmarks/shipped_tasks.py DATA OUT

DATA holds clinc150, hwu64, snips_intent, snips_slots and hate_offensive as task
folders. The domains of clinc150 are those of its paper (Larson et al. 2019,
arXiv:1909.02027, table of intents); the scenario of hwu64 is the first word of its
labels. Two sets written for this project are copied beside them. Then:

    promptdial train-all minilm --tasks OUT --out MADE --bf16
        --recipes benchmarks/recipes/shipped.yaml
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

PARTS = ("train", "dev", "test")
WRITTEN = Path(__file__).parents[1] / "prompts" / "training" / "examples"
OUT_OF_SCOPE = "out of scope"

CLINC_LICENSE = "CC-BY-3.0"
HWU_LICENSE = "CC-BY-4.0"
SNIPS_LICENSE = "CC0-1.0"
HATE_LICENSE = "MIT"

DOMAINS: dict[str, tuple[str, ...]] = {
    "banking": (
        "account blocked",
        "balance",
        "bill balance",
        "bill due",
        "freeze account",
        "interest rate",
        "min payment",
        "order checks",
        "pay bill",
        "pin change",
        "report fraud",
        "routing",
        "spending history",
        "transactions",
        "transfer",
    ),
    "credit_cards": (
        "application status",
        "apr",
        "card declined",
        "credit limit",
        "credit limit change",
        "credit score",
        "damaged card",
        "expiration date",
        "improve credit score",
        "international fees",
        "new card",
        "redeem rewards",
        "replacement card duration",
        "report lost card",
        "rewards balance",
    ),
    "kitchen": (
        "accept reservations",
        "calories",
        "cancel reservation",
        "confirm reservation",
        "cook time",
        "food last",
        "how busy",
        "ingredient substitution",
        "ingredients list",
        "meal suggestion",
        "nutrition info",
        "recipe",
        "restaurant reservation",
        "restaurant reviews",
        "restaurant suggestion",
    ),
    "home": (
        "calendar",
        "calendar update",
        "next song",
        "order",
        "order status",
        "play music",
        "reminder",
        "reminder update",
        "shopping list",
        "shopping list update",
        "smart home",
        "todo list",
        "todo list update",
        "update playlist",
        "what song",
    ),
    "car": (
        "current location",
        "directions",
        "distance",
        "gas",
        "gas type",
        "jump start",
        "last maintenance",
        "mpg",
        "oil change how",
        "oil change when",
        "schedule maintenance",
        "tire change",
        "tire pressure",
        "traffic",
        "uber",
    ),
    "travel": (
        "book flight",
        "book hotel",
        "car rental",
        "carry on",
        "exchange rate",
        "flight status",
        "international visa",
        "lost luggage",
        "plug type",
        "timezone",
        "translate",
        "travel alert",
        "travel notification",
        "travel suggestion",
        "vaccines",
    ),
    "utility": (
        "alarm",
        "calculator",
        "date",
        "definition",
        "find phone",
        "flip coin",
        "make call",
        "measurement conversion",
        "roll dice",
        "share location",
        "spelling",
        "text",
        "time",
        "timer",
        "weather",
    ),
    "work": (
        "direct deposit",
        "income",
        "insurance",
        "insurance change",
        "meeting schedule",
        "next holiday",
        "payday",
        "pto balance",
        "pto request",
        "pto request status",
        "pto used",
        "rollover 401k",
        "schedule meeting",
        "taxes",
        "w2",
    ),
    "small_talk": (
        "are you a bot",
        "do you have pets",
        "fun fact",
        "goodbye",
        "greeting",
        "how old are you",
        "meaning of life",
        "tell joke",
        "thank you",
        "what are your hobbies",
        "what can i ask you",
        "what is your name",
        "where are you from",
        "who do you work for",
        "who made you",
    ),
    "meta": (
        "cancel",
        "change accent",
        "change ai name",
        "change language",
        "change speed",
        "change user name",
        "change volume",
        "maybe",
        "no",
        "repeat",
        "reset settings",
        "sync device",
        "user name",
        "whisper mode",
        "yes",
    ),
}

Row = dict[str, object]
Rows = dict[str, list[Row]]


def read(folder: Path) -> Rows:
    """All rows of a task folder, by part."""
    return {
        part: [
            json.loads(line)
            for line in (folder / f"{part}.jsonl").read_text("utf-8").splitlines()
        ]
        for part in PARTS
    }


def relabel(rows: Rows, name_of: Callable[[str], str | None]) -> Rows:
    """Rows under new labels; those whose new label is None are dropped."""
    return {
        part: [
            {**item, "label": name}
            for item in items
            if (name := name_of(str(item["label"]))) is not None
        ]
        for part, items in rows.items()
    }


def write(out: Path, name: str, license_: str, rows: Rows) -> None:
    """Write a task folder with its task.yaml."""
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    for part, items in rows.items():
        lines = [json.dumps(item, ensure_ascii=False) for item in items]
        (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    (folder / "task.yaml").write_text(f"name: {name}\nlicense: {license_}\n", "utf-8")


def main(data: Path, out: Path) -> None:
    """Write every task folder."""
    clinc = read(data / "clinc150")
    domain_of = {
        intent: name for name, intents in DOMAINS.items() for intent in intents
    }
    found = {str(item["label"]) for item in clinc["train"]} - {OUT_OF_SCOPE}
    if found != set(domain_of):
        raise SystemExit(f"clinc150: intents differ: {found ^ set(domain_of)}")
    for name, intents in DOMAINS.items():
        write(out, name, CLINC_LICENSE, relabel(clinc, {i: i for i in intents}.get))
    hwu = read(data / "hwu64")
    scenarios = relabel(hwu, lambda label: label.split()[0])
    write(out, "scenario", HWU_LICENSE, scenarios)
    for name, license_ in (
        ("snips_intent", SNIPS_LICENSE),
        ("snips_slots", SNIPS_LICENSE),
        ("hate_offensive", HATE_LICENSE),
    ):
        write(out, name, license_, read(data / name))
    for name in ("same_request", "faq_search"):
        shutil.copytree(WRITTEN / name, out / name, dirs_exist_ok=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
