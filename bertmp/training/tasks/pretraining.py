"""Pre-training: samples of a prepared corpus with some of their tokens masked."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bertmp.core.errors import InputError
from bertmp.core.io import file_lock, home, sha256_file
from bertmp.core.progress import ProgressCallback
from bertmp.data.readers import Columns
from bertmp.data.tokenizer import Tokenizer
from bertmp.model.packed import Batch
from bertmp.pretraining import counter_rng
from bertmp.pretraining.corpus import open_corpus
from bertmp.pretraining.masking import Masking, Vocabulary
from bertmp.pretraining.packing import Samples, SamplingConfig
from bertmp.pretraining.prepare import prepare_store
from bertmp.pretraining.token_store import Store, is_store
from bertmp.training.tasks.task import Task
from bertmp.training.train_options import TrainOptions

_MASKING = 100
"""The purpose of masking's random keys; those of samples are smaller."""


@dataclass(frozen=True)
class PretrainingData:
    """A corpus as the loop reads it.

    Attributes:
        cls_id, sep_id: the ids of `[CLS]` and `[SEP]`.
    """

    samples: Samples
    masking: Masking
    cls_id: int
    sep_id: int
    truncated: int
    pairs: bool = False  # its segments are parts of samples, not a task's pairs

    @classmethod
    def of(
        cls, store: Store, config: SamplingConfig, masking: Masking, tokenizer: Tokenizer, where: Path
    ) -> PretrainingData:
        """See `Samples.of`, also for errors."""
        samples = Samples.of(store, config, where)
        return cls(samples, masking, tokenizer.id_of("[CLS]"), tokenizer.id_of("[SEP]"), samples.truncated())

    def __len__(self) -> int:
        return len(self.samples)

    def lengths(self, epoch: int) -> np.ndarray:
        """Tokens of each sample, INT32 `[samples]`."""
        return self.samples.lengths(epoch)

    def batch(self, rows: np.ndarray, epoch: int) -> Batch:
        """Some samples, packed; targets are those of `PreTraining`."""
        config = self.samples.config
        spans = self.samples.spans(rows, epoch)
        ends = np.stack([spans.first_length + 1, spans.second_length], axis=1)
        lengths = ends.sum(1) + (2 if config.pairs else 1)
        ids = np.full(lengths.sum(), self.sep_id, dtype=np.int64)
        types = np.zeros(len(ids), dtype=np.int64)
        tokens = self.samples.store.tokens
        place = 0
        parts = (spans.first_start, spans.first_length, spans.second_start, spans.second_length, lengths)
        rows_of_parts = zip(*(part.tolist() for part in parts), strict=True)
        for first, first_length, second, second_length, length in rows_of_parts:
            ids[place] = self.cls_id
            middle = place + 1 + first_length
            ids[place + 1 : middle] = tokens.slice(first, first + first_length)
            if second_length:
                ids[middle + 1 : middle + 1 + second_length] = tokens.slice(second, second + second_length)
                types[middle + 1 : place + length] = 1
            place += length
        keys = counter_rng.split(counter_rng.key(config.seed, epoch, _MASKING), rows)
        masked = self.masking.apply(ids, lengths, keys)
        targets = {"masked": masked.positions, "masked_labels": masked.labels}
        if config.pairs:
            targets["next_sentence"] = spans.negative
        input_ids, token_type_ids = torch.from_numpy(masked.input_ids), torch.from_numpy(types)
        tensors = {name: torch.from_numpy(values) for name, values in targets.items()}
        return Batch(input_ids, token_type_ids, tuple(lengths.tolist()), tensors)


def read_pretraining(settings: TrainOptions) -> Task:
    """Checks the corpora; they are prepared and opened once the tokenizer is known.

    Raises:
        InputError: a corpus is missing, of an unknown kind or without text.
    """
    columns = settings.columns()
    for path in (settings.data, settings.eval_data):
        if path is not None and not is_store(path):
            open_corpus(path, columns)

    def encode(path: Path, tokenizer: Tokenizer) -> PretrainingData:
        pairs, short = not settings.no_nsp, settings.short_seq_prob
        config = SamplingConfig(tokenizer.max_length, settings.seed, pairs, short)
        store = open_store(path, columns, tokenizer, settings.progress)
        masking = Masking(Vocabulary.of(tokenizer), settings.mlm_probability, settings.whole_word_masking)
        return PretrainingData.of(store, config, masking, tokenizer, path)

    return Task(None, settings.data, settings.eval_data, encode)


def open_store(path: Path, columns: Columns, tokenizer: Tokenizer, progress: ProgressCallback) -> Store:
    """Opens a prepared corpus; a text corpus is prepared first and cached under `BERTMP_HOME`.

    The cache key is the content of the file, its columns and the tokenizer.

    Raises:
        InputError: see `prepare` and `Store.open`.
    """
    if is_store(path):
        return Store.open(path, tokenizer)
    parts = [sha256_file(path), path.suffix, columns.text, columns.text_pair, tokenizer.fingerprint()]
    cache_key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    folder = home() / "corpora" / f"{path.stem}-{cache_key}"
    with file_lock(folder.with_name(f"{folder.name}.lock")):  # of several processes, one prepares it
        if is_store(folder):
            try:
                return Store.open(folder, tokenizer)
            except InputError:  # damaged in the cache: prepare it again
                shutil.rmtree(folder)
        for left in folder.parent.glob(f".{folder.name}.*.part"):  # by a preparation that was killed
            shutil.rmtree(left, ignore_errors=True)
        prepare_store(path, columns, tokenizer, folder, None, progress)
        return Store.open(folder, tokenizer)
