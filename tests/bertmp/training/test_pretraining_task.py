"""Pre-training: the head against Hugging Face's, its loss, runs that learn and resume, what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from bertmp import prepare, train
from bertmp.core.errors import InputError
from bertmp.data.tokenizer import Tokenizer
from bertmp.model.bert import initialise
from bertmp.model.checkpoint import load_checkpoint, save_checkpoint
from bertmp.model.config import BertConfig
from bertmp.model.heads import LossOptions, PreTraining
from bertmp.model.heads import pretraining as head_module
from bertmp.pretraining.masking import Masking, Vocabulary
from bertmp.pretraining.packing import SamplingConfig
from bertmp.pretraining.token_store import Store
from bertmp.training.metrics import read_metrics
from bertmp.training.tasks.pretraining import PretrainingData
from bertmp.training.train import TrainResult
from tests.conftest import RunBertmp
from tests.models import batch, packed

SMALL = BertConfig(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=64,
)


@pytest.fixture(scope="module")
def data(moviedialog: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """320 real pairs."""
    path = tmp_path_factory.mktemp("data") / "pairs.tsv"
    lines = (moviedialog / "pairs.tsv").read_text(encoding="utf-8").splitlines(keepends=True)[:321]
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def store(data: Path, minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(data, minilm, tmp_path_factory.mktemp("store") / "corpus").store


@pytest.fixture
def model() -> PreTraining:
    return drawn(PreTraining(SMALL))


def drawn(model: PreTraining) -> PreTraining:
    generator = torch.Generator().manual_seed(0)
    initialise(model, model.config, generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return model.eval()


def run(data: Path, model: Path, out: Path, **options: Any) -> TrainResult:
    return train("pretraining", data, model, out, **{"batch_size": 16, "learning_rate": 1e-3, **options})


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "final" / "model.safetensors")


class TestHead:
    def test_transformers_opens_what_is_saved(self, model: PreTraining, minilm: Path, tmp_path: Path) -> None:
        save_checkpoint(tmp_path / "saved", model, SMALL, Tokenizer.load(minilm, 64))
        saved = load_file(tmp_path / "saved" / "model.safetensors")
        assert not [name for name in saved if "decoder" in name]
        theirs, report = transformers.BertForPreTraining.from_pretrained(
            tmp_path / "saved", output_loading_info=True
        )
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        same_logits(model, theirs)
        words = theirs.cls.predictions.decoder.weight
        assert words is theirs.bert.embeddings.word_embeddings.weight

    def test_what_transformers_saves_is_read(self, minilm: Path, tmp_path: Path) -> None:
        theirs = foreign(transformers.BertForPreTraining, minilm, tmp_path / "theirs")
        loaded = load_checkpoint(tmp_path / "theirs")
        assert isinstance(loaded.model, PreTraining)
        assert (loaded.missing_keys, loaded.unexpected_keys) == ((), ())
        same_logits(loaded.model, theirs)

    def test_pretraining_goes_on_from_a_masked_language_model(self, minilm: Path, tmp_path: Path) -> None:
        theirs = foreign(transformers.BertForMaskedLM, minilm, tmp_path / "theirs")
        loaded = load_checkpoint(tmp_path / "theirs", "pretraining")
        assert {name for name in loaded.missing_keys if not name.startswith("bert.pooler.")} == {
            "cls.seq_relationship.weight",
            "cls.seq_relationship.bias",
        }
        inputs = batch(SMALL.vocab_size)
        with torch.no_grad():
            ours, _ = loaded.model(**inputs)
            expected = theirs(**inputs).logits
        mask = inputs["attention_mask"].bool()
        torch.testing.assert_close(ours[mask], expected[mask], atol=1e-5, rtol=0)

    def test_a_decoder_that_is_written_twice_is_read_once(
        self, model: PreTraining, minilm: Path, tmp_path: Path
    ) -> None:
        save_checkpoint(tmp_path / "saved", model, SMALL, Tokenizer.load(minilm, 64))
        path = tmp_path / "saved" / "model.safetensors"
        tensors = load_file(path)
        tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].clone()
        tensors["cls.predictions.decoder.bias"] = tensors.pop("cls.predictions.bias")
        save_file(tensors, path, metadata={"format": "pt"})
        loaded = load_checkpoint(tmp_path / "saved")
        assert (loaded.missing_keys, loaded.unexpected_keys) == ((), ())
        torch.testing.assert_close(
            loaded.model.state_dict()["cls.predictions.bias"], model.cls.predictions.bias.data
        )

    def test_the_loss_is_transformers(self, model: PreTraining, minilm: Path, tmp_path: Path) -> None:
        save_checkpoint(tmp_path / "saved", model, SMALL, Tokenizer.load(minilm, 64))
        theirs = transformers.BertForPreTraining.from_pretrained(tmp_path / "saved").eval()
        inputs = batch(SMALL.vocab_size, rows=4)
        labels = torch.where(torch.rand(inputs["input_ids"].shape) < 0.3, inputs["input_ids"], -100)
        labels = torch.where(inputs["attention_mask"].bool(), labels, -100)
        following = torch.tensor([0, 1, 1, 0])
        theirs_loss = theirs(**inputs, labels=labels, next_sentence_label=following).loss
        kept = labels[inputs["attention_mask"].bool()]
        places = torch.nonzero(kept != -100).squeeze(1)
        ours = packed(inputs, masked=places, masked_labels=kept[places], next_sentence=following)
        sums, counts = model.loss_sums(ours, LossOptions()), model.loss_counts(ours, LossOptions())
        assert counts == [float(len(places)), 4.0]
        torch.testing.assert_close((sums / torch.tensor(counts)).sum(), theirs_loss, atol=1e-5, rtol=1e-5)


def foreign(kind: Any, minilm: Path, folder: Path) -> Any:
    """A model of transformers with random weights, saved with a tokenizer."""
    torch.manual_seed(0)
    theirs = kind(transformers.BertConfig(**sizes())).eval()
    theirs.save_pretrained(folder)
    shutil.copy(minilm / "vocab.txt", folder)
    return theirs


def sizes() -> dict[str, int]:
    return {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
    }


def same_logits(ours: Any, theirs: Any) -> None:
    inputs = batch(SMALL.vocab_size)
    with torch.no_grad():
        words, pairs = ours(**inputs)
        expected = theirs.eval()(**inputs)
    mask = inputs["attention_mask"].bool()
    torch.testing.assert_close(words[mask], expected.prediction_logits[mask], atol=1e-5, rtol=0)
    torch.testing.assert_close(pairs, expected.seq_relationship_logits, atol=1e-5, rtol=0)


class TestLoss:
    @pytest.fixture
    def corpus(self, store: Path, minilm: Path) -> PretrainingData:
        tokenizer = Tokenizer.load(minilm, 64)
        masking = Masking(Vocabulary.of(tokenizer))
        return PretrainingData.of(
            Store.open(store, tokenizer), SamplingConfig(64, 0), masking, tokenizer, store
        )

    def test_packed_samples_lose_what_each_loses_alone(
        self, model: PreTraining, corpus: PretrainingData
    ) -> None:
        rows = np.array([3, 200, 17, 41, 99, 5])
        with torch.no_grad():
            together = model.loss_sums(corpus.batch(rows, 1), LossOptions())
            alone = [
                model.loss_sums(corpus.batch(rows[n : n + 1], 1), LossOptions()) for n in range(len(rows))
            ]
        torch.testing.assert_close(together, torch.stack(alone).sum(0), atol=0, rtol=1e-5)

    def test_rows_at_a_time_change_neither_loss_nor_gradient(
        self, model: PreTraining, corpus: PretrainingData, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        results = []
        for rows in (10_000, 7):
            monkeypatch.setattr(head_module, "LOGIT_ROWS", rows)
            model.zero_grad()
            sums = model.loss_sums(corpus.batch(np.arange(16), 0), LossOptions())
            sums.sum().backward()
            results.append((sums.detach(), [p.grad.clone() for p in model.parameters()]))  # type: ignore[union-attr]
        torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=0)
        for first, second in zip(results[0][1], results[1][1], strict=True):
            torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)

    def test_under_autocast_the_losses_are_fp32(self, model: PreTraining, corpus: PretrainingData) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            sums = model.loss_sums(corpus.batch(np.arange(8), 0), LossOptions())
        assert sums.dtype == torch.float32
        exact = model.loss_sums(corpus.batch(np.arange(8), 0), LossOptions())
        torch.testing.assert_close(sums, exact, rtol=0.02, atol=0)

    def test_the_vocabulary_is_projected_at_masked_positions_only(
        self, model: PreTraining, corpus: PretrainingData
    ) -> None:
        seen = []
        model.cls.predictions.register_forward_hook(lambda module, inputs, out: seen.append(out.shape))
        items = corpus.batch(np.arange(16), 0)
        model.loss_sums(items, LossOptions())
        assert seen == [(len(items.targets["masked"]), SMALL.vocab_size)]
        assert len(items.targets["masked"]) < 0.16 * items.tokens


class TestRuns:
    def test_it_learns_and_the_corpus_is_prepared_once(
        self, data: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("BERTMP_HOME", str(tmp_path / "home"))
        result = run(data, tiny, tmp_path / "run", eval_data=data, epochs=2, learning_rate=1e-2, log_every=2)
        lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
        assert lines[0]["loss"] > 10  # 10.3 for the words, 0.7 for the pairs: nothing is known yet
        assert result.evaluation is not None
        assert set(result.evaluation.figures) == {
            "loss", "mlm_loss", "mlm_accuracy", "nsp_loss", "nsp_accuracy",
        }  # fmt: skip
        assert result.evaluation.figures["mlm_loss"] < 6.5
        assert result.evaluation.figures["mlm_accuracy"] > 0.08
        (folder,) = (path for path in (tmp_path / "home" / "corpora").iterdir() if path.is_dir())
        before = (folder / "tokens.arrow").stat()
        run(data, tiny, tmp_path / "again", steps=1)
        assert (folder / "tokens.arrow").stat() == before
        opened = transformers.BertForPreTraining.from_pretrained(result.checkpoint)
        assert opened.config.architectures == ["BertForPreTraining"]

    def test_a_damaged_preparation_is_made_again(
        self, data: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("BERTMP_HOME", str(tmp_path / "home"))
        run(data, tiny, tmp_path / "first", steps=2)
        (tokens,) = (tmp_path / "home" / "corpora").glob("*/tokens.arrow")
        tokens.write_bytes(tokens.read_bytes()[:-100])
        left = tokens.parent.parent / f".{tokens.parent.name}.killed.part"
        left.mkdir()
        run(data, tiny, tmp_path / "second", steps=2)
        assert not left.exists()
        first, second = weights(tmp_path / "first"), weights(tmp_path / "second")
        assert all(torch.equal(first[name], second[name]) for name in first)

    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    def test_a_run_resumed_in_mid_epoch_ends_with_the_same_bits(
        self, precision: str, store: Path, tiny: Path, tmp_path: Path
    ) -> None:
        options = {
            "steps": 14, "save_every": 6, "num_workers": 1, "gradient_accumulation_steps": 2,
            "precision": precision, "whole_word_masking": True,
        }  # fmt: skip
        run(store, tiny, tmp_path / "whole", **options)
        run(store, tiny, tmp_path / "broken", **options)
        shutil.rmtree(tmp_path / "broken" / "final")
        for state in sorted((tmp_path / "broken" / "steps").iterdir())[1:]:
            shutil.rmtree(state)
        run(store, tiny, tmp_path / "broken", resume=True, **options)
        whole, broken = weights(tmp_path / "whole"), weights(tmp_path / "broken")
        assert whole.keys() == broken.keys()
        assert all(torch.equal(whole[name], broken[name]) for name in whole)

    def test_without_next_sentences(self, tiny: Path, tmp_path: Path, minilm: Path) -> None:
        (tmp_path / "book.txt").write_text("One sentence of a book.\nAnother one.\nA third one.\n" * 20)
        store = prepare(tmp_path / "book.txt", minilm, tmp_path / "store").store
        result = run(store, tiny, tmp_path / "run", steps=3, no_nsp=True, eval_data=store)
        assert result.evaluation is not None
        assert set(result.evaluation.figures) == {"loss", "mlm_loss", "mlm_accuracy"}

    @pytest.mark.slow
    def test_memory_does_not_grow_with_the_corpus(self, data: Path, tiny: Path, tmp_path: Path) -> None:
        """Ten times the corpus, the same steps: the peak grows by the index, a few bytes a sample."""
        lines = data.read_text(encoding="utf-8").splitlines(keepends=True)
        peaks = []
        for times in (4, 40):
            path = tmp_path / f"{times}.tsv"
            path.write_text("".join(lines[:1] + lines[1:] * times), encoding="utf-8")
            store = prepare(path, tiny, tmp_path / f"store-{times}").store
            peaks.append(peak_of_training(store, tiny, tmp_path / f"run-{times}"))
        assert peaks[1] - peaks[0] < 16 << 20


def peak_of_training(store: Path, model: Path, out: Path) -> int:
    """Peak resident bytes of a process that trains a few steps."""
    code = (
        "import sys; from pathlib import Path; from bertmp import train; a = [Path(x) for x in sys.argv[1:]];"
        "print(train('pretraining', *a, steps=5, batch_size=8, precision='fp32').peak_memory_bytes)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, (store, model, out))],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


REFUSED = {
    "the corpus is one sentence": b"Only one sentence.\n",
    "the corpus has no text": b"\n\n   \n",
    "the corpus is one document: next-sentence prediction has no negatives": b"One sentence.\nAnother.\n",
    "not UTF-8: byte 0xe9": "One.\n\ncafé\n".encode("latin-1"),
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_bad_corpus_is_refused_and_nothing_is_left(
    message: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BERTMP_HOME", str(tmp_path / "home"))
    data = tmp_path / "corpus.txt"
    data.write_bytes(REFUSED[message])
    with pytest.raises(InputError) as caught:
        run(data, tiny, tmp_path / "run")
    assert str(caught.value).startswith(f"{message} ({data}")
    assert caught.value.exit_code == 2
    assert not (tmp_path / "run").exists()
    assert not list((tmp_path / "home").rglob("*.part"))


def test_a_corpus_of_one_document_is_one_line_and_code_2(
    tiny: Path, tmp_path: Path, run_bertmp: RunBertmp
) -> None:
    data = tmp_path / "corpus.txt"
    data.write_text("One sentence.\nAnother.\n")
    done = run_bertmp(
        *("train", "pretraining", "--data", data, "--model", tiny, "--out", tmp_path / "run"),
        env={"BERTMP_HOME": str(tmp_path / "home")},
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: the corpus is one document: next-sentence prediction has no negatives "
        f"({data}): put blank lines between documents, or train with --no-nsp\n"
    )
    assert done.stdout == ""
    assert not (tmp_path / "run").exists()


def test_a_line_of_a_million_characters_trains(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BERTMP_HOME", str(tmp_path / "home"))
    data = tmp_path / "corpus.txt"
    data.write_text("some words " * 91_000 + "\n\nAnother document.\nIts end.\n")
    assert run(data, tiny, tmp_path / "run", steps=2).steps == 2


def test_a_store_that_is_damaged_or_of_another_tokenizer(
    store: Path, tiny: Path, tmp_path: Path, run_bertmp: RunBertmp
) -> None:
    damaged = Path(shutil.copytree(store, tmp_path / "damaged"))
    with (damaged / "tokens.arrow").open("r+b") as stream:
        stream.truncate(3000)
    done = run_bertmp(
        *("train", "pretraining", "--data", damaged, "--model", tiny, "--out", tmp_path / "run")
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: a file of the prepared corpus is cut short (")
    assert done.stderr.count("\n") == 1
    other = Path(shutil.copytree(tiny, tmp_path / "other"))
    (other / "tokenizer.json").unlink()
    settings = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps({**settings, "do_lower_case": False}))
    with pytest.raises(InputError, match="prepared with another tokenizer"):
        run(store, other, tmp_path / "run", steps=1)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_no_store(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a prepared corpus"):
        run(tmp_path, tiny, tmp_path / "run")


@pytest.mark.parametrize(
    ("option", "value"), [("mlm_probability", 0.0), ("mlm_probability", 1.5), ("short_seq_prob", -0.1)]
)
def test_bad_settings(option: str, value: float, store: Path, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"--{option.replace('_', '-')}"):
        run(store, tiny, tmp_path / "run", **{option: value})
