"""Samples and masks: what they are made of, exactly and on average, whatever the batch and the process."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertmp import prepare
from bertmp.core.errors import InputError
from bertmp.data.tokenizer import Tokenizer
from bertmp.pretraining import counter_rng
from bertmp.pretraining.masking import Masking, Vocabulary
from bertmp.pretraining.packing import Samples, SamplingConfig
from bertmp.pretraining.token_store import Store
from bertmp.training.tasks.pretraining import PretrainingData


@pytest.fixture(scope="module")
def tokenizer(minilm: Path) -> Tokenizer:
    return Tokenizer.load(minilm, 64)


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary.of(tokenizer)


@pytest.fixture(scope="module")
def pairs(
    moviedialog: Path, minilm: Path, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Store:
    """4,000 real pairs."""
    folder = tmp_path_factory.mktemp("pairs")
    lines = (moviedialog / "pairs.tsv").read_text(encoding="utf-8").splitlines(keepends=True)[:4001]
    (folder / "pairs.tsv").write_text("".join(lines), encoding="utf-8")
    return Store.open(prepare(folder / "pairs.tsv", minilm, folder / "store", num_workers=1).store, tokenizer)


@pytest.fixture(scope="module")
def books(
    moviedialog: Path, minilm: Path, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Store:
    """Real sentences in documents of 1 to 30."""
    folder = tmp_path_factory.mktemp("books")
    lines = (moviedialog / "pairs.tsv").read_text(encoding="utf-8").splitlines()[1:3001]
    sentences = [text for line in lines for text in line.split("\t")]
    rng, place, text = np.random.default_rng(0), 0, ""
    while place < len(sentences):
        size = int(rng.integers(1, 31))
        text += "".join(f"{sentence}\n" for sentence in sentences[place : place + size]) + "\n"
        place += size
    (folder / "books.txt").write_text(text, encoding="utf-8")
    return Store.open(prepare(folder / "books.txt", minilm, folder / "store", num_workers=1).store, tokenizer)


def samples_of(store: Store, **options: object) -> Samples:
    return Samples.of(store, SamplingConfig(**{"max_length": 64, "seed": 0, **options}), store.folder)  # type: ignore[arg-type]


def all_rows(samples: Samples) -> np.ndarray:
    return np.arange(len(samples))


def documents_at(store: Store, tokens: np.ndarray) -> np.ndarray:
    """The document of each token place, found the plain way."""
    starts = store.sentences.slice(0, len(store.sentences))[store.documents.slice(0, len(store.documents))]
    return np.searchsorted(starts, tokens, side="right") - 1


class TestSamples:
    @pytest.mark.parametrize("name", ["pairs", "books"])
    def test_half_of_the_second_segments_are_of_other_documents(
        self, name: str, request: pytest.FixtureRequest
    ) -> None:
        store: Store = request.getfixturevalue(name)
        samples = samples_of(store)
        seen = []
        for epoch in range(3):
            spans = samples.spans(all_rows(samples), epoch)
            first, second = (documents_at(store, start) for start in (spans.first_start, spans.second_start))
            np.testing.assert_array_equal(first == second, spans.negative == 0)
            assert spans.negative.mean() == pytest.approx(0.5, abs=0.03)
            assert (spans.first_length > 0).all()
            assert (spans.second_length > 0).all()
            seen.append(spans.negative)
        assert 0.3 < (seen[0] != seen[1]).mean() < 0.6

    def test_a_true_pair_follows_without_a_gap(self, books: Store) -> None:
        samples = samples_of(books)
        spans = samples.spans(all_rows(samples), 0)
        true = spans.negative == 0
        np.testing.assert_array_equal(
            (spans.first_start + spans.first_length)[true], spans.second_start[true]
        )

    def test_packing_leaves_no_sentence_out_and_uses_the_length(self, books: Store) -> None:
        samples = samples_of(books, short_seq_prob=0.0)
        ends = samples.first + samples.count
        np.testing.assert_array_equal(samples.first[1:], ends[:-1])
        assert (samples.first[0], ends[-1]) == (0, books.counts.sentences)
        starts = books.sentences.slice(0, len(books.sentences))
        own = starts[ends] - starts[samples.first]
        assert (own[samples.count > 1] <= 61).all()
        bounds = set(books.documents.slice(0, len(books.documents)).tolist())
        for end, tokens in zip(ends.tolist(), own.tolist(), strict=True):
            assert end in bounds or tokens + starts[end + 1] - starts[end] > 61

    def test_some_samples_are_short(self, books: Store) -> None:
        mean = [samples_of(books, short_seq_prob=rate).lengths(0).mean() for rate in (0.0, 0.9)]
        assert mean[1] < 0.8 * mean[0]

    def test_a_negative_of_a_pair_is_the_second_text_of_another(self, pairs: Store) -> None:
        samples = samples_of(pairs)
        spans = samples.spans(all_rows(samples), 0)
        starts = pairs.sentences.slice(0, len(pairs.sentences))
        assert set(spans.second_start.tolist()) <= set(starts[1::2].tolist())

    @pytest.mark.parametrize("max_length", [5, 8, 13, 64])
    @pytest.mark.parametrize("nsp", [True, False])
    def test_nothing_is_longer_than_it_may_be(
        self, max_length: int, nsp: bool, books: Store, pairs: Store
    ) -> None:
        for store in (books, pairs):
            samples = Samples.of(store, SamplingConfig(max_length, 1, nsp), store.folder)
            lengths = samples.lengths(2)
            assert lengths.max() <= max_length
            spans = samples.spans(all_rows(samples), 2)
            special = 3 if nsp else 2
            np.testing.assert_array_equal(lengths, spans.first_length + spans.second_length + special)

    def test_too_long_pairs_lose_of_the_longer_text_and_what_is_far_from_the_middle(
        self, minilm: Path, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        path = tmp_path / "long.tsv"
        rows = ["one two three four five six\tseven", "one\tseven eight nine ten", "one two\tseven eight"]
        path.write_text("text\ttext_pair\n" + "".join(f"{row}\n" for row in rows))
        store = Store.open(prepare(path, minilm, tmp_path / "store").store, tokenizer)
        samples = samples_of(store, max_length=7)
        assert samples.truncated() == 2
        for epoch in range(20):
            spans = samples.spans(np.arange(3), epoch)
            kept = list(zip(spans.first_length.tolist(), spans.second_length.tolist(), strict=True))
            for row, expected in enumerate([(3, 1), (1, 3), (2, 2)]):
                if not spans.negative[row]:
                    assert kept[row] == expected
        assert spans.first_start[0] + spans.first_length[0] == 6

    def test_without_next_sentences_a_sample_is_one_segment(self, books: Store) -> None:
        samples = samples_of(books, pairs=False)
        spans = samples.spans(all_rows(samples), 0)
        assert not spans.second_length.any()
        assert int(spans.first_length.sum()) == books.counts.tokens

    def test_a_corpus_of_one_document_has_no_negatives(
        self, minilm: Path, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        (tmp_path / "x.txt").write_text("A sentence.\nAnother one.\n")
        store = Store.open(prepare(tmp_path / "x.txt", minilm, tmp_path / "store").store, tokenizer)
        with pytest.raises(InputError, match="next-sentence prediction has no negatives"):
            samples_of(store)
        assert len(samples_of(store, pairs=False)) == 1

    def test_a_corpus_of_single_sentences_has_no_true_pairs(
        self, minilm: Path, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        (tmp_path / "x.txt").write_text("A sentence.\n\nAnother one.\n")
        store = Store.open(prepare(tmp_path / "x.txt", minilm, tmp_path / "store").store, tokenizer)
        with pytest.raises(InputError, match="next-sentence prediction has no true pairs"):
            samples_of(store)


class TestBatches:
    @pytest.fixture(scope="class")
    def data(self, pairs: Store, tokenizer: Tokenizer, vocabulary: Vocabulary) -> PretrainingData:
        return PretrainingData.of(pairs, SamplingConfig(64, 3), Masking(vocabulary), tokenizer, pairs.folder)

    def test_a_sample_does_not_depend_on_its_batch(self, data: PretrainingData) -> None:
        whole = data.batch(np.array([7, 3000, 12, 55]), epoch=4)
        alone = data.batch(np.array([12]), epoch=4)
        start = sum(whole.lengths[:2])
        places = slice(start, start + whole.lengths[2])
        assert whole.input_ids[places].tolist() == alone.input_ids.tolist()
        assert whole.token_type_ids[places].tolist() == alone.token_type_ids.tolist()
        inside = (whole.targets["masked"] >= places.start) & (whole.targets["masked"] < places.stop)
        assert (whole.targets["masked"][inside] - start).tolist() == alone.targets["masked"].tolist()
        assert whole.targets["masked_labels"][inside].tolist() == alone.targets["masked_labels"].tolist()

    def test_epoch_and_seed_decide(self, data: PretrainingData) -> None:
        rows = np.arange(32)
        first = data.batch(rows, 0)
        assert first.input_ids.tolist() == data.batch(rows, 0).input_ids.tolist()
        assert first.input_ids.tolist() != data.batch(rows, 1).input_ids.tolist()

    def test_the_layout_is_berts(self, data: PretrainingData, tokenizer: Tokenizer) -> None:
        batch = data.batch(np.arange(64), 0)
        cls_id, sep_id = tokenizer.id_of("[CLS]"), tokenizer.id_of("[SEP]")
        place = 0
        for row, length in enumerate(batch.lengths):
            ids, types = (x[place : place + length].tolist() for x in (batch.input_ids, batch.token_type_ids))
            assert (ids[0], ids[-1]) == (cls_id, sep_id)
            assert ids.count(sep_id) == 2
            middle = ids.index(sep_id) + 1
            assert types == [0] * middle + [1] * (length - middle)
            assert batch.targets["next_sentence"][row] in (0, 1)
            place += length
        assert batch.lengths == tuple(data.lengths(0)[:64].tolist())

    def test_unmasking_gives_back_the_corpus(self, data: PretrainingData, pairs: Store) -> None:
        batch = data.batch(np.arange(64), 0)
        ids = batch.input_ids.clone()
        ids[batch.targets["masked"]] = batch.targets["masked_labels"]
        spans = data.samples.spans(np.arange(64), 0)
        place = 0
        for row, length in enumerate(batch.lengths):
            first, size = int(spans.first_start[row]), int(spans.first_length[row])
            assert (
                ids[place + 1 : place + 1 + size].tolist() == pairs.tokens.slice(first, first + size).tolist()
            )
            place += length

    def test_another_process_makes_the_same(self, data: PretrainingData) -> None:
        sent = pickle.loads(pickle.dumps(data))
        rows = np.array([5, 17])
        assert sent.batch(rows, 1).input_ids.tolist() == data.batch(rows, 1).input_ids.tolist()


class TestMasking:
    """On made-up ids: 1000 to 1999 begin words, 2000 to 2999 go on with them."""

    VOCABULARY = Vocabulary(
        mask_id=103,
        special=np.isin(np.arange(3000), (0, 101, 102, 103)),
        continuation=np.arange(3000) >= 2000,
        replacements=np.arange(1000, 3000),
    )

    def batch(self, rows: int, length: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids, lengths and keys; words of one to four pieces."""
        rng = np.random.default_rng(seed)
        ids = np.where(rng.random((rows, length)) < 0.3, 1000, 0) + rng.integers(1000, 2000, (rows, length))
        ids[:, 0], ids[:, -1], ids[:, 1] = 101, 102, 1500
        keys = counter_rng.split(counter_rng.key(seed), np.arange(rows))
        return ids.ravel(), np.full(rows, length), keys

    @pytest.mark.parametrize("whole_words", [False, True])
    def test_shares(self, whole_words: bool) -> None:
        ids, lengths, keys = self.batch(2000, 82)
        masked = Masking(self.VOCABULARY, 0.15, whole_words).apply(ids, lengths, keys)
        ordinary = 2000 * 80
        assert len(masked.positions) / ordinary == pytest.approx(0.15, abs=0.004)
        read = masked.input_ids[masked.positions]
        hidden, kept = read == 103, read == masked.labels
        assert hidden.mean() == pytest.approx(0.8, abs=0.01)
        assert kept.mean() == pytest.approx(0.1, abs=0.01)
        others = read[~hidden & ~kept]
        assert len(np.unique(others)) > 1300
        assert others.min() >= 1000
        places = masked.positions % 82
        assert np.bincount(places, minlength=82)[[0, 81]].sum() == 0
        assert np.bincount(places)[2:80].std() < 0.1 * len(places) / 80

    def test_exactly_the_share_of_each_sample_is_masked(self) -> None:
        ids, lengths, keys = self.batch(50, 42)
        masked = Masking(self.VOCABULARY, 0.15).apply(ids, lengths, keys)
        assert np.bincount(masked.positions // 42).tolist() == [6] * 50
        np.testing.assert_array_equal(masked.labels, ids[masked.positions])
        untouched = np.setdiff1d(np.arange(len(ids)), masked.positions)
        np.testing.assert_array_equal(masked.input_ids[untouched], ids[untouched])

    def test_words_are_masked_whole(self) -> None:
        ids, lengths, keys = self.batch(200, 42)
        masked = Masking(self.VOCABULARY, 0.15, whole_words=True).apply(ids, lengths, keys)
        chosen = np.isin(np.arange(len(ids)), masked.positions)
        goes_on = np.flatnonzero(ids >= 2000)
        np.testing.assert_array_equal(chosen[goes_on], chosen[goes_on - 1])
        counts = np.bincount(masked.positions // 42, minlength=200)
        assert counts.min() >= 1
        assert counts.max() <= 6 + 4

    @pytest.mark.parametrize("whole_words", [False, True])
    @settings(max_examples=60, deadline=None)
    @given(lengths=st.lists(st.integers(3, 30), min_size=1, max_size=12), seed=st.integers(0, 2**40))
    def test_at_least_one_of_each_sample_and_never_a_special_one(
        self, whole_words: bool, lengths: list[int], seed: int
    ) -> None:
        rng = np.random.default_rng(seed)
        ids = np.concatenate([[101, *rng.integers(1000, 3000, length - 2), 102] for length in lengths])
        keys = counter_rng.split(counter_rng.key(seed), np.arange(len(lengths)))
        masked = Masking(self.VOCABULARY, 0.15, whole_words).apply(ids, np.array(lengths), keys)
        rows = np.repeat(np.arange(len(lengths)), lengths)[masked.positions]
        assert np.bincount(rows, minlength=len(lengths)).min() >= 1
        assert not self.VOCABULARY.special[masked.labels].any()
        assert (np.diff(masked.positions) > 0).all()

    def test_a_sample_without_an_ordinary_token_has_nothing_masked(self) -> None:
        ids, lengths = np.array([101, 103, 102, 101, 1500, 102]), np.array([3, 3])
        for whole_words in (False, True):
            keys = counter_rng.split(counter_rng.key(1), np.arange(2))
            masked = Masking(self.VOCABULARY, 0.15, whole_words).apply(ids, lengths, keys)
            assert masked.positions.tolist() == [4]

    def test_the_masks_of_the_first_sample_are_these(self) -> None:
        """Pinned: a resumed run of a later version must draw what this one draws."""
        ids, lengths, keys = self.batch(1, 42)
        masked = Masking(self.VOCABULARY, 0.15).apply(ids, lengths, keys)
        assert masked.positions.tolist() == [4, 16, 17, 18, 25, 34]


def test_real_vocabulary(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    assert vocabulary.mask_id == 103
    assert np.flatnonzero(vocabulary.special).tolist() == [0, 101, 102, 103]
    assert vocabulary.continuation[tokenizer.id_of("##ing")]
    assert not vocabulary.continuation[tokenizer.id_of("the")]
    assert len(vocabulary.replacements) == tokenizer.vocabulary_size - 4


def test_draws_are_uniform_and_apart() -> None:
    counters = np.arange(200_000)
    numbers = counter_rng.uniform(counter_rng.key(1, 2, 3), counters)
    histogram = np.histogram(numbers, bins=50, range=(0, 1))[0]
    assert abs(histogram / 4000 - 1).max() < 0.08
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.01
    assert abs(np.corrcoef(numbers, counter_rng.uniform(counter_rng.key(1, 3, 3), counters))[0, 1]) < 0.01
    drawn = counter_rng.randint(counter_rng.key(5), counters, 7)
    assert np.bincount(drawn).tolist() == pytest.approx([200_000 / 7] * 7, rel=0.05)
