"""Training: what a run writes, that it learns, that it resumes exactly, and how it fails."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from bertmp import train
from bertmp.core.errors import InputError, TrainingStopped
from bertmp.model.checkpoint import load_checkpoint
from bertmp.model.heads import LossOptions, SequenceClassifier
from bertmp.model.packed import Batch
from bertmp.training.metrics import read_metrics
from bertmp.training.train import TrainResult
from tests.conftest import RunBertmp


@pytest.fixture(scope="session")
def data(trec: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 real questions of all labels."""
    path = tmp_path_factory.mktemp("data") / "questions.tsv"
    lines = (trec / "train.tsv").read_text(encoding="utf-8").splitlines()[:240]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def run(data: Path, model: Path, out: Path, **options: Any) -> TrainResult:
    return train("classification", data, model, out, **{"batch_size": 16, "learning_rate": 1e-3, **options})


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "final" / "model.safetensors")


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def losses(out: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_metrics(out / "metrics.jsonl") if "loss" in line]


def test_a_run_learns_and_writes_what_it_promises(
    data: Path, trec: Path, minilm: Path, tmp_path: Path
) -> None:
    test = tmp_path / "test.tsv"
    test.write_text(
        "\n".join((trec / "test.tsv").read_text(encoding="utf-8").splitlines()[:100]), encoding="utf-8"
    )
    out = tmp_path / "run"
    result = run(data, minilm, out, eval_data=test, epochs=2, learning_rate=2e-4, log_every=5)

    assert result.precision == "bf16"
    assert result.steps == 30
    assert result.evaluation is not None
    assert result.evaluation.figures["accuracy"] > 0.5  # the commonest of six labels is right 23 times in 100
    lines = read_metrics(out / "metrics.jsonl")
    logged = [line for line in lines if "loss" in line]
    assert [line["step"] for line in logged] == [5, 10, 15, 20, 25, 30]
    assert set(logged[0]) == {
        "step", "epoch", "loss", "learning_rate", "loss_scale", "grad_norm", "skipped_steps",
        "tokens_per_second", "examples_per_second", "seconds",
    }  # fmt: skip
    assert logged[-1]["loss"] < 0.8 * logged[0]["loss"]
    assert [line["eval_accuracy"] for line in lines if "eval_accuracy" in line][-1] == pytest.approx(
        result.evaluation.figures["accuracy"]
    )
    opened = transformers.AutoModelForSequenceClassification.from_pretrained(result.checkpoint)
    assert set(opened.config.label2id) == {line.split("\t")[0] for line in data.read_text().splitlines()}
    assert {tensor.dtype for tensor in weights(out).values()} == {torch.float32}


def test_the_metrics_are_tensorboards_too(data: Path, tiny: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(data, tiny, tmp_path / "run", steps=6, eval_data=data, eval_every=3, log_every=2)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    for tag, name in (
        ("train/loss", "loss"),
        ("eval/accuracy", "eval_accuracy"),
        ("train/grad_norm", "grad_norm"),
    ):
        seen = [(event.step, event.value) for event in events.Scalars(tag)]
        written = [(line["step"], pytest.approx(line[name], rel=1e-5)) for line in lines if name in line]
        assert seen == written
        assert seen


def test_the_best_evaluation_is_kept_and_waiting_for_a_better_one_ends(
    data: Path, tiny: Path, tmp_path: Path
) -> None:
    """A learning rate that soon ruins the model: the evaluations get worse, and the run gives up."""
    result = run(
        data, tiny, tmp_path / "run", steps=60, eval_data=data, eval_every=2, keep_best=True, patience=4,
        learning_rate=0.05, warmup_ratio=0.9, loss_spike_factor=0,
    )  # fmt: skip
    evaluations = [
        (line["eval_accuracy"], -line["step"])
        for line in read_metrics(tmp_path / "run" / "metrics.jsonl")
        if "eval_accuracy" in line
    ]
    best, step = max(evaluations)
    assert result.steps < 60
    assert result.steps == -evaluations[-1][1] == -step + 4 * 2
    assert result.evaluation is not None
    assert result.evaluation.figures["accuracy"] == pytest.approx(best)
    assert equal(weights(tmp_path / "run"), load_file(tmp_path / "run" / "best" / "model.safetensors"))


def test_balanced_class_weights_weigh_each_class_alike(data: Path, tiny: Path, tmp_path: Path) -> None:
    """With one example of a class against many, only the balanced run learns the rare one."""
    rare = tmp_path / "rare.tsv"
    rare.write_text(
        "".join(f"many\tWhat is number {n} ?\n" for n in range(47)) + "rare\tWho rang the bell ?\n"
    )
    first = {}
    for kind in ("none", "balanced"):
        run(
            rare,
            tiny,
            tmp_path / kind,
            steps=3,
            batch_size=48,
            class_weights=kind,
            log_every=1,
            learning_rate=1e-9,
        )
        first[kind] = losses(tmp_path / kind)[0][1]
    model = load_checkpoint(tiny, "classification", ("many", "rare")).model.train()
    assert isinstance(model, SequenceClassifier)
    assert first["none"] != first["balanced"]
    balanced = LossOptions(0.0, [48 / 2 / 47, 48 / 2 / 1])
    batch = Batch(torch.tensor([1, 2]), torch.tensor([0, 0]), (1, 1), {"labels": torch.tensor([0, 1])})
    assert model.loss_counts(batch, balanced) == pytest.approx([24 / 47 + 24])


def test_the_saved_settings_reproduce_the_run(
    data: Path, tiny: Path, tmp_path: Path, run_bertmp: RunBertmp
) -> None:
    run(data, tiny, tmp_path / "first", steps=6, warmup_ratio=0.5, seed=3)
    config = tmp_path / "first" / "config.toml"
    again = run_bertmp("train", "classification", "--config", config, "--out", tmp_path / "again", "--json")
    assert again.returncode == 0, again.stderr
    assert set(json.loads(again.stdout)) >= {
        "checkpoint", "steps", "examples_per_second", "tokens_per_second", "eval", "precision",
        "peak_memory_bytes",
    }  # fmt: skip
    assert equal(weights(tmp_path / "first"), weights(tmp_path / "again"))


def test_run_without_tomli_w_says_that_its_settings_are_not_saved(
    data: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tomli_w", None)
    out, messages = tmp_path / "run", []
    run(data, tiny, out, steps=1, progress=lambda message, *_: messages.append(message))
    path = out / "config.toml"
    assert f"the settings are not saved: tomli-w is not installed ({path}): pip install tomli-w" in messages
    assert not path.exists()
    assert (out / "final" / "model.safetensors").is_file()
    run(data, tiny, out, steps=1, overwrite=True)  # the folder is known as a run's all the same


def test_the_seed_decides(data: Path, tiny: Path, tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        run(data, tiny, tmp_path / name, steps=3, seed=seed)
    assert equal(weights(tmp_path / "one"), weights(tmp_path / "same"))
    assert not equal(weights(tmp_path / "one"), weights(tmp_path / "other"))


def test_resume_without_a_state_starts_from_the_beginning_and_says_so(
    data: Path, tiny: Path, tmp_path: Path, run_bertmp: RunBertmp
) -> None:
    done = run_bertmp(
        *("train", "classification", "--data", data, "--model", tiny, "--out", tmp_path / "run"),
        *("--steps", 2, "--resume", "--json"),
    )
    assert done.returncode == 0, done.stderr
    assert "no state to resume from" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_request_to_end_saves_a_state_and_leaves_with_130(
    number: signal.Signals, data: Path, tiny: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = [
        *(sys.executable, "-m", "bertmp", "train", "classification", "--data", data, "--model", tiny),
        *(
            "--out",
            out,
            "--batch-size",
            "16",
            "--epochs",
            "200",
            "--save-every",
            "100000",
            "--log-every",
            "1",
        ),
    ]
    process = subprocess.Popen([str(part) for part in command], stderr=subprocess.PIPE, text=True)
    try:
        metrics = out / "metrics.jsonl"
        while process.poll() is None and not (metrics.is_file() and metrics.read_text().count("\n") >= 3):
            pass
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    (state,) = (out / "steps").iterdir()
    assert json.loads((state / "state.json").read_text())["position"]["step"] >= 3
    assert not (out / "final").exists()
    assert not list(out.rglob("*.part"))


def test_weights_that_are_not_finite_stop_the_run_with_code_3(
    data: Path, tiny: Path, tmp_path: Path, run_bertmp: RunBertmp
) -> None:
    model = Path(shutil.copytree(tiny, tmp_path / "poisoned"))
    tensors = load_file(model / "model.safetensors")
    tensors["encoder.layer.1.output.dense.weight"][3, 5] = float("nan")
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    done = run_bertmp(
        *("train", "classification", "--data", data, "--model", model, "--out", tmp_path / "run")
    )
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith(
        "error: a weight of bert.encoder.layer.1.output.dense is not finite (step 1): no good state was saved"
    )
    assert not (tmp_path / "run" / "final").exists()


def test_a_run_that_ends_in_ruins_is_stopped_with_code_3(
    data: Path, tiny: Path, tmp_path: Path, run_bertmp: RunBertmp
) -> None:
    done = run_bertmp(
        *("train", "classification", "--data", data, "--model", tiny, "--out", tmp_path / "run"),
        *("--learning-rate", "1e30", "--warmup-ratio", "0", "--steps", "2"),
    )
    assert done.returncode == 3, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: the output of bert.")
    assert not (tmp_path / "run" / "final").exists()


def test_a_run_that_takes_no_step_is_stopped(data: Path, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingStopped, match="every step was skipped: nothing was learned"):
        run(data, tiny, tmp_path / "run", steps=2, precision="fp16", loss_scale="1e30")


def test_a_finished_run_is_replaced_only_when_asked(
    data: Path, tiny: Path, tmp_path: Path, run_bertmp: RunBertmp
) -> None:
    command = ("train", "classification", "--data", data, "--model", tiny, "--out", tmp_path / "run")
    run(data, tiny, tmp_path / "run", steps=4, save_every=2)
    checkpoint = (tmp_path / "run" / "final" / "model.safetensors").read_bytes()
    refused = run_bertmp(*command, "--steps", "1")
    assert refused.returncode == 2
    assert "the folder holds a finished run" in refused.stderr
    assert "--overwrite" in refused.stderr
    assert (tmp_path / "run" / "final" / "model.safetensors").read_bytes() == checkpoint
    done = run_bertmp(*command, "--steps", "1", "--overwrite")
    assert done.returncode == 0
    assert "up to step 4, are replaced; --resume goes on from them" in " ".join(done.stderr.split())
    assert [line["step"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [1]


def test_a_model_that_is_not_downloaded(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BERTMP_HOME", str(tmp_path / "home"))
    with pytest.raises(InputError, match="not downloaded"):
        run(data, Path("minilm"), tmp_path / "run", steps=1)


def test_long_texts_are_cut_and_counted(tiny: Path, tmp_path: Path) -> None:
    data = tmp_path / "long.tsv"
    data.write_text("a\tshort\nb\t" + "long " * 100 + "\n", encoding="utf-8")
    assert run(data, tiny, tmp_path / "run", steps=1).truncated == 1


def test_pairs_train_as_two_segments(tiny: Path, tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    rows = [{"text": f"question {n}", "text_pair": f"answer {n}", "label": n % 2} for n in range(8)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert run(data, tiny, tmp_path / "run", steps=2).steps == 2
    assert json.loads((tmp_path / "run" / "final" / "config.json").read_text())["id2label"] == {
        "0": "0",
        "1": "1",
    }


BAD_DATA = {
    "the data file has no rows": b"",
    "a line without a tab": b"a\tone\nno tab here\n",
    "one label only: 'a'": b"a\tone\na\ttwo\n",
    "not UTF-8: byte 0xe9": "a\tcafé\nb\tx\n".encode("latin-1"),
    "no text": b"a\tone\nb\t\n",
}


@pytest.mark.parametrize("message", BAD_DATA)
def test_bad_data_is_one_line_and_code_2(
    message: str, tiny: Path, tmp_path: Path, run_bertmp: RunBertmp
) -> None:
    data = tmp_path / "data.tsv"
    data.write_bytes(BAD_DATA[message])
    done = run_bertmp("train", "classification", "--data", data, "--model", tiny, "--out", tmp_path / "run")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message} ({data}")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert not (tmp_path / "run").exists()


def test_a_label_that_training_never_saw(
    data: Path, tiny: Path, tmp_path: Path, run_bertmp: RunBertmp
) -> None:
    test = tmp_path / "test.tsv"
    test.write_text("NEVER\tWhat is this ?\n")
    done = run_bertmp(
        *(
            "train",
            "classification",
            "--data",
            data,
            "--eval-data",
            test,
            "--model",
            tiny,
            "--out",
            tmp_path / "run",
        )
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: the label 'NEVER' never occurs in the training data ({test})")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--learning-rate", "0"), ("--learning-rate", "nan"), ("--batch-size", "0"), ("--epochs", "0"),
        ("--precision", "fp8"), ("--loss-scale", "-1"), ("--loss-scale", "much"), ("--warmup-ratio", "1"),
        ("--max-length", "1000"), ("--steps", "many"), ("--gradient-accumulation-steps", "33"),
    ],
)  # fmt: skip
def test_bad_settings(
    option: str, value: str, data: Path, tiny: Path, tmp_path: Path, run_bertmp: RunBertmp
) -> None:
    done = run_bertmp(
        *(
            "train",
            "classification",
            "--data",
            data,
            "--model",
            tiny,
            "--out",
            tmp_path / "run",
            option,
            value,
        )
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert option in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_not_a_run_is_left_alone(data: Path, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="not a run"):
        run(data, tiny, tmp_path, steps=1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
