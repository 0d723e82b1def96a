"""Fine-tuning the usual way: `transformers.Trainer` with dynamic padding, BF16 by autocast."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any


def measure(
    data: str, eval_data: str, model: str, epochs: int, batch_size: int, learning_rate: float, seed: int
) -> dict[str, Any]:
    """Trains, evaluates once at the end, writes the checkpoint; the time is that of the steps alone."""
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        set_seed,
    )

    from bertmp.data.readers import read_examples

    set_seed(seed)
    train, test = read_examples(Path(data)), read_examples(Path(eval_data))
    names = sorted(set(train.labels or ()))
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForSequenceClassification.from_pretrained(model, num_labels=len(names))

    def encoded(examples: Any) -> list[dict[str, Any]]:
        rows = tokenizer(list(examples.texts), truncation=True, max_length=512)["input_ids"]
        return [
            {"input_ids": row, "labels": names.index(label)}
            for row, label in zip(rows, examples.labels, strict=True)
        ]

    class Clock(TrainerCallback):
        """Notes when the first step begins and when the last one is done."""

        first = last = 0.0

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.first = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.last = time.perf_counter()

    def accuracy_of(answers: Any) -> dict[str, float]:
        return {"accuracy": float((answers.predictions.argmax(-1) == answers.label_ids).mean())}

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=batch_size,
            per_device_eval_batch_size=64,
            num_train_epochs=epochs,
            learning_rate=learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=0.1,  # below 1: a share of all steps
            weight_decay=0.01,
            max_grad_norm=1.0,
            bf16=True,
            use_cpu=True,
            seed=seed,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(
            model=network,
            args=arguments,
            train_dataset=encoded(train),
            eval_dataset=encoded(test),
            data_collator=DataCollatorWithPadding(tokenizer),
            processing_class=tokenizer,
            compute_metrics=accuracy_of,
            callbacks=[clock],
        )
        trainer.train()
        accuracy = trainer.evaluate()["eval_accuracy"]
        trainer.save_model(folder)
    return {"examples": len(train) * epochs, "seconds": clock.last - clock.first, "accuracy": accuracy}
