"""Texts that calibration and parity run on: own sentences, or rows that a user gives.

The sentences are written for this project. They vary in length, register, digits and
punctuation, since channel maxima have to hold for texts that nobody has seen yet.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from promptdial.runtime.rows import Row, read_rows

SENTENCES: tuple[str, ...] = (
    "Wake me at seven tomorrow and play the morning news.",
    "The soup was cold, the waiter was rude, and we still left a tip.",
    "Is there a pharmacy open near the station after 10 p.m. on Sundays?",
    "No.",
    "Turn the living room lights down to thirty percent.",
    "What an astonishing little film; I laughed from the first scene to the last.",
    "Order #48213 has shipped and should reach you between 14 and 16 March.",
    "She asked how old the bridge was, and nobody on the boat could tell her.",
    "Error 503: service unavailable, retrying in 20 seconds.",
    "How do I reset the thermostat to its factory settings?",
    "The river rose two metres overnight and closed both roads into the valley.",
    "Call Mum.",
    "Shares of the chip maker fell 4.2% after it lowered its forecast for the year.",
    "Please translate the following paragraph into plain language for a child of ten.",
    "He neither confirmed nor denied that the contract had been signed.",
    "Add oat milk, two lemons and a bag of rice to my shopping list.",
    "Honestly the worst update ever, it drains the battery and crashes twice a day!!!",
    "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen.",
    "Which country has won the tournament most often?",
    "The committee will meet again on Thursday to discuss the budget for new buses.",
    "Congratulations, you have been chosen! Reply WIN to 80888 to claim your prize.",
    "I can't find my boarding pass; can you send it to my e-mail again?",
    "In 1969 two people walked on the moon while a third kept the ship in orbit.",
    "My flight from Lisbon to Oslo leaves at 06:45, so set two alarms.",
    "Although the plot is thin, the actors carry it with warmth and perfect timing.",
    "Who wrote the letters that were found in the attic of the old post office?",
    "def area(r): return 3.14159 * r ** 2",
    "The left rear tyre is losing pressure. Stop when it is safe to do so.",
    "A gentle breeze moved the curtains, and for a while nobody spoke.",
    "Patients who took the drug slept 38 minutes longer than those who did not.",
    "Could you lower the volume a bit? The baby has just fallen asleep.",
    "Supporters cheered as the goalkeeper saved the third penalty in a row.",
    "The warranty covers parts and labour for 24 months from the date of purchase.",
    "ok thanks see u there :)",
    "Move the meeting with Dr. Nakamura from Monday to Wednesday at half past three.",
    "They were tired of waiting, tired of promises, and tired of the rain.",
    "Where is the nearest charging point, and how long will a full charge take?",
    "Water boils at a lower temperature in the mountains because the air is thinner.",
    "Neither the map nor the sign explained why the path ended at a locked gate.",
    "The new library lends tools, instruments and telescopes as well as books.",
    "Cancel the second reminder but keep the first one.",
    "Critics praised the orchestra; the audience, it must be said, was half asleep.",
    "To change the filter, switch the machine off, open the flap, pull the blue tab "
    "towards you, rinse the grille under warm water, let it dry for at least an hour, "
    "and put everything back in the opposite order until you hear a click.",
    "When the last ferry had gone and the kiosks were closing one by one, the old man "
    "folded his newspaper, counted the coins in his palm, looked once more across the "
    "harbour to where the lights of the other shore were coming on, and decided that "
    "he would stay one more winter after all, whatever his sister might say.",
)


def calibration_texts(files: Sequence[Path] = ()) -> list[Row]:
    """Rows of the files, or the built-in sentences where there are none.

    Raises:
        DataInvalid: A file is missing, empty or malformed.
    """
    if not files:
        return [Row(text=sentence) for sentence in SENTENCES]
    return [row for file in files for row in read_rows(file)]


def take_evenly(rows: Sequence[Row], count: int) -> list[Row]:
    """At most `count` rows, spread over the whole sequence."""
    if len(rows) <= count:
        return list(rows)
    return [rows[index * len(rows) // count] for index in range(count)]


def joined(rows: Iterable[Row]) -> str:
    """One long text of all rows, to reach past the positions of short ones."""
    return " ".join(row.text for row in rows)
