"""Phrases that name nothing in an image, taken from other images of the same source.

Few data sets say what is *not* there. A head that shall tell needs to see it, so that a share of
all phrases is borrowed: a phrase of another image whose words and categories do not occur in this
one. The check is strict, since a borrowed phrase that is true after all would teach the opposite;
what it lets through may be easy to tell.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from flmm_core.data import rle
from flmm_core.data.sample import AnnotatedImage, GroundedObject

SLICE = "borrowed"
TRIES = 50
"""Other phrases that are looked at for each one that is wanted."""

# A word of letters; Chinese, Japanese and Korean are not written with spaces, so each sign is one.
_SIGNS = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_SIGNS}]|[^\W\d_{_SIGNS}]{{2,}}")
# These name no thing, so that "the red bus" may be borrowed for "a man in a red shirt".
_NAMELESS = """
    the this that these those an of in on at to by with from and or not is are was it its his her
    their one ones thing other another first second third last left right top bottom middle center
    front back behind next near far side upper lower above below over under between corner big
    small large little tall short long old young new red green blue yellow purple orange pink brown
    black white gray grey dark light bright colored all both two three four only closest standing
    sitting holding wearing looking who which
"""
_PERSON = """
    person people man men woman women guy guys lady ladies girl girls boy boys kid kids child
    children baby dude gentleman male female he she player human someone anyone
"""
NAMELESS, PERSON = frozenset(_NAMELESS.split()), frozenset(_PERSON.split())


@dataclass(frozen=True)
class AbsentCount:
    """How many of all phrases name nothing: as annotated, and borrowed."""

    phrases: int
    annotated: int
    borrowed: int

    @classmethod
    def of(cls, images: Sequence[AnnotatedImage]) -> AbsentCount:
        """Of the objects of images, each counted once."""
        things = [thing for image in images for thing in image.objects]
        absent = sum(thing.absent for thing in things)
        borrowed = sum(thing.slice == SLICE for thing in things)
        return cls(len(things), absent - borrowed, borrowed)

    def __str__(self) -> str:
        share = f"{self.annotated + self.borrowed} of {self.phrases} objects are not there"
        return f"{share}, borrowed from other images" if self.borrowed else share


def borrow_absent(
    images: Sequence[AnnotatedImage], share: float, seed: int = 0
) -> tuple[AnnotatedImage, ...]:
    """Add phrases of other images, so that about `share` (0 to below 1) of all name nothing.

    They stand at random places between the image's own. An image with a caption of its own gets
    none, and no image does if some phrases name nothing already. The same images, share and seed
    give the same phrases.
    """
    images = tuple(images)
    lenders = [
        (number, thing)
        for number, image in enumerate(images)
        for thing in image.objects
        if not image.caption and naming_words(*thing.sentences)
    ]
    if not share or not lenders or AbsentCount.of(images).annotated:
        return images
    known = [_Known.of(image) for image in images]
    changed = []
    for number, image in enumerate(images):
        rng = np.random.default_rng((seed, number))
        wanted = len(image.objects) * share / (1 - share)
        count = int(wanted) + int(rng.random() < wanted % 1)
        things = list(image.objects)
        for _ in range(0 if image.caption else TRIES * count):
            if len(things) == len(image.objects) + count:
                break
            lender, thing = lenders[int(rng.integers(len(lenders)))]
            said = {each.sentences for each in things}
            if lender != number and thing.sentences not in said and known[number].lacks(thing):
                place = int(rng.integers(len(things) + 1))
                things.insert(place, _absent(thing, image, f"borrowed-{lender}-{thing.name}"))
        changed.append(replace(image, objects=tuple(things)))
    return tuple(changed)


def naming_words(*texts: str) -> set[str]:
    """The words of texts that may name a thing, in a form that their plural shares."""
    words = {word for text in texts for word in _WORD.findall(text.casefold())}
    return {"person" if word in PERSON else word.removesuffix("s") for word in words - NAMELESS}


@dataclass(frozen=True)
class _Known:
    """What is known to be in an image: naming words, and categories in lower case."""

    words: frozenset[str]
    categories: frozenset[str]

    @classmethod
    def of(cls, image: AnnotatedImage) -> _Known:
        categories = set(image.categories).union(*(_categories(each) for each in image.objects))
        said = [text for thing in image.objects for text in thing.sentences]
        words = naming_words(*said, *categories)
        return cls(frozenset(words), frozenset(name.casefold() for name in categories))

    def lacks(self, thing: GroundedObject) -> bool:
        """Whether neither a category of the thing nor one of its words is known here."""
        categories = {name.casefold() for name in _categories(thing)}
        if categories & self.categories:
            return False
        # Also parts of words: "fireman" is a man, "dog's" and "hotdog" are let go.
        return not any(
            word in other or other in word
            for word in naming_words(*thing.sentences, *categories)
            for other in self.words
        )


def _categories(thing: GroundedObject) -> set[str]:
    return set(filter(None, thing.category.split(", ")))


def _absent(thing: GroundedObject, image: AnnotatedImage, name: str) -> GroundedObject:
    return GroundedObject(
        rle.empty(*image.image_hw),
        thing.sentences,
        thing.category,
        slice=SLICE,
        split=image.objects[0].split,
        name=name,
        absent=True,
    )
