"""Pre-training the usual way: a loop around `BertForPreTraining`, dynamic masking, dynamic padding, BF16."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Pairs:
    """Adjacent pairs, half of them with another pair's second text; tokenised when asked for."""

    def __init__(self, data: Path, tokenizer: Any, max_length: int, seed: int) -> None:
        from bertmp.data.readers import read_examples

        examples = read_examples(data)
        assert examples.pairs is not None
        self.texts, self.pairs = examples.texts, examples.pairs
        self.tokenizer, self.max_length = tokenizer, max_length
        self.random = random.Random(seed)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, row: int) -> dict[str, Any]:
        other = self.random.random() < 0.5
        second = self.pairs[self.random.randrange(len(self)) if other else row]
        encoded = self.tokenizer(self.texts[row], second, truncation=True, max_length=self.max_length)
        return {**encoded, "next_sentence_label": int(other)}


def batches(pairs: Pairs, batch_size: int, pad_to: int | None, seed: int) -> Iterator[dict[str, Any]]:
    """Shuffled, masked and padded batches, epoch after epoch; to their longest pair, or to `pad_to`."""
    import torch
    from transformers import DataCollatorForLanguageModeling

    collator = DataCollatorForLanguageModeling(
        pairs.tokenizer, mlm_probability=0.15, pad_to_multiple_of=pad_to
    )
    order = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.utils.data.DataLoader(
            pairs,  # type: ignore[arg-type]
            batch_size=batch_size,
            shuffle=True,
            generator=order,
            collate_fn=collator,
            drop_last=True,
        )


def measure(
    data: str,
    model: str,
    out: str,
    steps: int,
    unmeasured: int,
    batch_size: int,
    max_length: int,
    learning_rate: float,
    seed: int,
    padded: bool,
) -> dict[str, Any]:
    """Trains `steps` steps and writes the checkpoint to `out`.

    Args:
        unmeasured: first steps that the speed leaves out.
        padded: fill every batch up to `max_length` instead of to its longest pair.
    """
    import torch
    from transformers import AutoTokenizer, BertForPreTraining, get_linear_schedule_with_warmup, set_seed

    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = BertForPreTraining.from_pretrained(model).train()
    pairs = Pairs(Path(data), tokenizer, max_length, seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=0.01, fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, round(0.1 * steps), steps)
    losses: list[float] = []
    tokens: list[int] = []
    started = time.perf_counter()
    feed = batches(pairs, batch_size, max_length if padded else None, seed)
    for step, batch in zip(range(steps), feed, strict=False):
        if step == unmeasured:
            started = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = network(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        tokens.append(int(batch["attention_mask"].sum()))
    seconds = time.perf_counter() - started
    network.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return {"tokens": sum(tokens[unmeasured:]), "seconds": seconds, "losses": losses}
