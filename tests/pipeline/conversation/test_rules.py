"""Noun phrases by `rules`, on sentences as models write them."""

from __future__ import annotations

import pytest

from flmm_core.pipeline.conversation.phrases.rules import noun_phrases

SENTENCES = {
    # determiners, adjectives, compounds, numbers
    "There are two parked cars and a tall stop sign on the wooden table.": [
        "two parked cars", "a tall stop sign", "the wooden table",
    ],
    "A brightly colored bird; a well-lit, very small 2-story house": [
        "A brightly colored bird", "a well-lit, very small 2-story house",
    ],
    "1,000 people and 3 dogs wear T-shirts": ["1,000 people", "3 dogs", "T-shirts"],
    # adjectives that are nouns, and the other way round
    "The traffic light is green. An orange is on the plate. The ride is long.": [
        "The traffic light", "An orange", "the plate", "The ride",
    ],
    # lists and conjunctions
    "a red, round ball, a black and white dog and cats or birds": [
        "a red, round ball", "a black and white dog", "cats", "birds",
    ],
    # possessives
    "The man's hat, the dogs' bowls, his phone and the boy's sitting": [
        "The man's hat", "the dogs' bowls", "his phone", "the boy",
    ],
    "The café’s naïve waiter": ["The café’s naïve waiter"],
    # "of"
    "the lid of the box, a group of people, a cup of hot coffee, a set of chairs": [
        "the lid", "the box", "a group of people", "a cup of hot coffee", "a set of chairs",
    ],
    # verbs and participles
    "A man riding a horse is wearing a hat and eating leaves.": [
        "A man", "a horse", "a hat", "leaves",
    ],
    "The dog chases the cat that jumps over it because it rains": ["The dog", "the cat"],
    "the running man and a car parked near him": ["the running man", "a car"],
    # the image, places, pronouns, what a thing is like
    "In this photo, the left side of the sofa is empty and it is at the top left.": ["the sofa"],
    "The table is wood. There is water. There are dogs.": ["The table", "water", "dogs"],
    "Yes, it is. No, they are here.": [],
    # other languages and marks end a phrase
    "这只猫在桌子上 and a cat": ["a cat"],
    "**Cat**: sits\n- a dog\n- birds": ["Cat", "a dog", "birds"],
    "": [],
}  # fmt: skip


@pytest.mark.parametrize("text", SENTENCES)
def test_noun_phrases(text: str) -> None:
    assert [text[start:end] for start, end in noun_phrases(text)] == SENTENCES[text]
