import random

from sota_ml_researcher.data.words import words_in


def test_words_are_equal_where_and_only_where_their_hashes_are() -> None:
    rng = random.Random(0)
    texts = ["".join(rng.choice("abAB_ 1.,日本éÉ“” \n") for _ in range(rng.randint(0, 30))) for _ in range(1000)]
    words = words_in(texts)
    hash_of: dict[str, int] = {}
    for i, text in enumerate(texts):
        spaced = "".join(f" {c} " if c in "日本" else c if c.isalnum() or c == "_" else " " for c in text.lower())
        hashes = words.hashes[words.offsets[i] : words.offsets[i + 1]].tolist()
        assert len(hashes) == len(spaced.split())
        assert words.longest[i] == max((len(word.encode()) for word in spaced.split()), default=0)
        assert all(hash_of.setdefault(word, found) == found for word, found in zip(spaced.split(), hashes, strict=True))
    assert len(set(hash_of.values())) == len(hash_of)


def test_ngrams_stay_within_a_text_and_know_their_order() -> None:
    grams, offsets = words_in(["a b c d", "", "a b", "b c d", "d c b"]).ngrams(3)
    assert offsets.tolist() == [0, 2, 2, 2, 3, 4]
    assert grams[1] == grams[2]
    assert len(set(grams.tolist())) == 3


def test_a_text_is_read_the_same_alone_and_among_many() -> None:
    texts = [f"row number {i} " + "filler " * 5000 for i in range(100)]
    assert words_in(texts).hashes[-5002] == words_in(texts[-1:]).hashes[1]
