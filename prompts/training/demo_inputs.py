"""What the demo asks each shipped task: inputs written for it."""

DEMO_INPUTS: dict[str, tuple[tuple[str, str | None], ...]] = {
    "banking": (
        ("please move two hundred dollars to my savings", None),
        ("somebody used my account in another city", None),
    ),
    "credit_cards": (
        ("my card snapped in half", None),
        ("how many points do i have left", None),
    ),
    "kitchen": (
        ("can i use yoghurt in place of sour cream", None),
        ("table for four at seven tonight", None),
    ),
    "home": (
        ("skip to the following track", None),
        ("put oat milk on the list for the shop", None),
    ),
    "car": (
        ("the battery is flat how do i get it going", None),
        ("how many miles is it from here to the coast", None),
    ),
    "travel": (
        ("do i need shots before going to kenya", None),
        ("my suitcase never came off the belt", None),
    ),
    "utility": (
        ("how many ounces are in a pound", None),
        ("ring my sister", None),
    ),
    "work": (
        ("how much leave have i got left", None),
        ("when does the salary arrive", None),
    ),
    "small_talk": (
        ("say something that makes me laugh", None),
        ("which company built you", None),
    ),
    "meta": (
        ("say that again please", None),
        ("speak more slowly", None),
    ),
    "scenario": (
        ("dim the lamp in the hall", None),
        ("what will the sky be like on sunday", None),
    ),
    "snips_intent": (
        ("give this novel four stars out of five", None),
        ("find me somewhere to eat ramen tonight", None),
    ),
    "hate_offensive": (
        ("what a lovely morning for a walk", None),
        ("shut up you stupid bitch", None),
    ),
    "snips_slots": (
        ("book a table for two at a sushi bar in denver tomorrow", None),
        ("play some jazz by miles davis", None),
    ),
    "same_request": (
        ("the kettle will not switch on", "my kettle does not start"),
        ("the kettle will not switch on", "how do i clean the kettle"),
    ),
    "faq_search": (("my bulb is broken", None), ("how do i get to the zoo", None)),
}
"""Task to (text, second text of a pair)."""
