"""Adversarial inputs: what they are, that sound models pass, and the faults that only they find."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from bertmp import export_checkpoint, parity
from bertmp.core.errors import InputError
from bertmp.export.bundle import Bundle, Manifest
from bertmp.export.parity.adversarial import AdversarialSet, adversarial_inputs
from bertmp.export.parity.adversarial_run import EMPTY, reader_refuses_empty
from bertmp.export.parity.gates import override
from bertmp.export.parity.stage import ParityInputs, Skipped, StageInterrupted, StageOutput
from bertmp.model.checkpoint import save_checkpoint
from bertmp.model.config import BertConfig
from bertmp.model.heads import HEADS
from tests.export.adversarial_faults import (
    add_at_full_length,
    divide_by_tokens,
    leak_padding_rows,
    spoil_highest_id,
    spoil_unknown,
)
from tests.export.inconsistent_graphs import Fault
from tests.export.parity_bundles import LABELS, LOW, Served, mix_up
from tests.models import head, small_tokenizer


@pytest.fixture(scope="module")
def short(texts: Sequence[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of ordinary length and words: what none of the faults here shows on."""
    path = tmp_path_factory.mktemp("short") / "texts.txt"
    path.write_text("\n".join(texts[:12]))
    return path


def made_for(bundle: Path, seed: int = 0) -> AdversarialSet:
    return adversarial_inputs(Bundle.open(bundle), pairs=False, seed=seed)


def broken_kinds(result: Any, stage: str) -> set[str]:
    return {row.kind for row in result.adversarial.rows if row.stage == stage and not row.passed}


# ---- the inputs


def test_the_same_seed_makes_the_same_inputs(exported: Path) -> None:
    first, again, other = made_for(exported), made_for(exported), made_for(exported, seed=1)
    assert (first.inputs, first.batches) == (again.inputs, again.batches)
    assert first.inputs != other.inputs
    assert {row.kind for row in first.inputs} == {row.kind for row in other.inputs}


def test_the_inputs_are_what_their_kinds_say(exported: Path) -> None:
    made, bundle = made_for(exported), Bundle.open(exported)
    by_kind: dict[str, list[Any]] = {}
    for row in made.inputs:
        by_kind.setdefault(row.kind, []).append(row)
    tokenizer = bundle.tokenizer
    unknown, top = tokenizer.id_of("[UNK]"), bundle.config["vocab_size"] - 1
    assert {len(row.encoded) for row in by_kind["one token"]} == {3}
    assert [len(row.encoded) for row in by_kind["maximum length"]] == [40]
    [cut] = by_kind["one token too many"]
    assert (len(cut.encoded), cut.encoded.truncated, len(tokenizer.pieces([cut.text])[0])) == (40, True, 39)
    assert any(set(row.encoded.input_ids[1:-1]) == {unknown} for row in by_kind["all [UNK]"])
    assert len({*by_kind["one token repeated"][0].encoded.input_ids[1:-1]} - {unknown}) == 1
    named = {number for row in by_kind["special and added tokens"] for number in row.encoded.input_ids}
    assert named >= set(tokenizer.special_ids) >= {tokenizer.id_of(token) for token in ("[MASK]", "[PAD]")}
    assert top in by_kind["highest id"][0].encoded.input_ids
    assert [len(row.encoded) for row in by_kind["padding row"]] == [0]
    assert {len(batch) for batch in made.batches} >= {1, 2, 16}
    assert sorted(number for batch in made.batches for number in batch) == list(range(len(made.inputs)))
    for row in by_kind["beside a padding row"]:
        assert made.inputs[row.twin].encoded == row.encoded
    lengths = {tuple(len(made.inputs[number].encoded) for number in batch) for batch in made.batches}
    assert (3, 40) in lengths
    assert all(row.text.strip() for row in made.inputs if row.text is not None)


def test_an_engines_inputs_fit_its_profiles(exported: Path, tmp_path: Path) -> None:
    made = made_for(exported)
    from bertmp.export.engine.engine_options import parse_profile

    template = replace(made.template, profiles=[parse_profile("1x1:8x16:16x24")])
    fitted = replace(made, template=template).asked("engine", texts_only=False)
    asked = [len(made.inputs[number].encoded) for batch in fitted for number in batch]
    assert max(asked) <= 24
    everywhere = made.asked("onnx-fp16", texts_only=False)
    assert sum(map(len, everywhere)) == len(made.inputs) > len(asked)
    texts = made.asked("triton", texts_only=True)
    assert {made.inputs[number].text is None for batch in texts for number in batch} == {False}


# ---- sound models


@pytest.mark.parametrize(
    "task",
    [
        pytest.param(
            task, marks=() if task in ("classification", "token-classification") else pytest.mark.slow
        )
        for task in HEADS
    ],
)
def test_a_sound_model_of_every_head_passes(task: str, tmp_path: Path) -> None:
    tokenizer = small_tokenizer(tmp_path, ["who", "is", "the", "king"])
    labels = ("O", "B-X", "I-X") if HEADS[task].classes else ("LABEL_0",) if task == "regression" else ()
    sizes = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 96}
    config = BertConfig(
        vocab_size=tokenizer.vocabulary_size, max_position_embeddings=40, labels=labels, **sizes
    )
    save_checkpoint(tmp_path / "model", head(task, config), config, tokenizer)
    bundle = export_checkpoint(tmp_path / "model", tmp_path / "bundle").bundle
    (tmp_path / "texts.txt").write_text("who is the king\nis the king\n")
    result = parity(bundle, tmp_path / "texts.txt")
    assert result.passed, [gate.sentence for gate in result.failed_gates]
    assert [gate.stage for gate in result.gates if gate.name == "adversarial"] == [
        "torch-fp32",
        "onnx-fp32",
        *LOW,
    ]
    low = [row for row in result.adversarial.rows if row.stage == "onnx-fp16"]  # type: ignore[union-attr]
    assert sum(row.asked for row in low) == result.adversarial.inputs  # type: ignore[union-attr]
    assert all(row.max_error for row in low if row.kind not in ("padding row", "no token"))


def test_a_model_for_pairs_gets_pairs(exported: Path) -> None:
    made = adversarial_inputs(Bundle.open(exported), pairs=True)
    tokenizer = Bundle.open(exported).tokenizer
    assert all(row.pair for row in made.inputs if row.text is not None)
    shortest = [row for row in made.inputs if row.kind == "one token"]
    assert {len(row.encoded) for row in shortest} == {5}
    [longest] = [row for row in made.inputs if row.kind == "maximum length"]
    assert len(longest.encoded) == tokenizer.max_length
    assert set(longest.encoded.token_type_ids) == {0, 1}
    [cut] = [row for row in made.inputs if row.kind == "one token too many"]
    assert cut.encoded.truncated
    turned = {"\u05de" in row.text for row in made.inputs if row.kind == "right-to-left"}
    assert turned == {True, False}


def test_a_pair_model_passes(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_text("text\ttext_pair\nw1 w2\tw3\nw4\tw5 w6\n")
    result = parity(bundle, tmp_path / "pairs.tsv")
    assert result.passed, [gate.sentence for gate in result.failed_gates]
    assert result.adversarial is not None
    assert result.adversarial.inputs > 40


# ---- the report


def test_the_files_tell_what_was_asked(bundle: Path, short: Path) -> None:
    result = parity(bundle, short, seed=3)
    made = result.adversarial
    assert made is not None
    written = json.loads((result.folder / "report.json").read_text())["adversarial"]
    assert (written["seed"], written["inputs"]) == (3, len(made_for(bundle, 3).inputs))
    assert {row["stage"] for row in written["rows"]} == {"torch-fp32", "onnx-fp32", *LOW}
    kept = Manifest.load(bundle).stages["parity"].results["adversarial"]
    certificate = json.loads((bundle / "certificate.json").read_text())
    assert kept == certificate["predicate"]["adversarial"] == {"seed": 3, "inputs": made.inputs}
    cases = ElementTree.parse(result.folder / "junit.xml").findall(".//testcase[@name='adversarial']")
    assert len(cases) == 4
    page = " ".join((result.folder / "report.html").read_text().split())
    assert f"{made.inputs} inputs made for this model with the seed 3" in page
    assert '<th scope="row">beside a padding row</th>' in page


def test_the_gate_can_be_left_out(bundle: Path, short: Path) -> None:
    mix_up(bundle, divide_by_tokens)
    off = override({stage: {"adversarial": False} for stage in LOW}, "")
    result = parity(bundle, short, gates=off)
    assert [gate.name for gate in result.failed_gates] == ["as_planned"]
    assert not {*LOW} & {gate.stage for gate in result.gates if gate.name == "adversarial"}


# ---- faults


@pytest.mark.parametrize(
    ("fault", "kinds", "words"),
    [
        (add_at_full_length, {"maximum length", "one token too many"}, "largest logit error"),
        (spoil_highest_id, {"highest id"}, "NaN or infinite"),
        (spoil_unknown, {"all [UNK]"}, "largest logit error"),
        (divide_by_tokens, {"padding row"}, "NaN or infinite"),
        (leak_padding_rows, {"beside a padding row"}, "largest logit error"),
    ],
)
def test_a_fault_that_no_ordinary_text_shows_is_found(
    bundle: Path, short: Path, fault: Fault, kinds: set[str], words: str
) -> None:
    mix_up(bundle, fault)
    result = parity(bundle, short)
    failed = [gate for gate in result.failed_gates if gate.name != "as_planned"]
    assert [(gate.stage, gate.name) for gate in failed] == [(stage, "adversarial") for stage in LOW]
    assert all(words in gate.sentence for gate in failed)
    assert any(f"the kind {kind}" in gate.sentence for gate in failed for kind in kinds)
    found = broken_kinds(result, "onnx-fp16")
    assert found >= kinds
    assert result.verdict == "failed"


def test_a_fault_on_adversarial_inputs_alone_is_localised(bundle: Path, short: Path) -> None:
    mix_up(bundle, spoil_unknown)
    where = parity(bundle, short).stage("onnx-fp16").localisation
    assert where is not None
    assert where.block == "bert.embeddings"


# ---- served models


class Counter(Served):
    """A served model that refuses empty texts, except for those of `taken`; keeps what it was asked."""

    def __init__(self, graph: Path, taken: Sequence[str] = (), ends: Exception | None = None) -> None:
        super().__init__(graph)
        self.taken, self.ends, self.texts = taken, ends, []  # type: ignore[var-annotated]

    def answered_empty(self, texts: Sequence[str]) -> Sequence[str]:
        assert not any(text.strip() for text in texts)
        return [text for text in texts if text in self.taken]

    def run(self, inputs: ParityInputs, advance: Callable[[int], None]) -> StageOutput | Skipped:
        if self.ends is not None and any("\U0001f600" in text for text in inputs.texts):
            raise self.ends
        self.texts += inputs.texts
        return super().run(inputs, advance)


def test_a_served_model_gets_the_texts_alone_and_refuses_empty_ones(bundle: Path, short: Path) -> None:
    served = Counter(bundle / "model.onnx")
    result = parity(bundle, short, extra_stages=[served])
    assert result.passed, [gate.sentence for gate in result.failed_gates]
    assert all(text.strip() for text in served.texts)
    made = result.adversarial
    assert made is not None
    [triton] = [one for one in made.stages if one.stage == "triton"]
    assert 30 < triton.asked < made.inputs
    assert triton.refuses_empty is True
    assert made.reader_refuses_empty
    page = " ".join((result.folder / "report.html").read_text().split())
    assert "An empty text is refused by the reader of data files, refused by triton." in page


def test_a_served_model_that_answers_an_empty_text_fails(bundle: Path, short: Path) -> None:
    result = parity(bundle, short, extra_stages=[Counter(bundle / "model.onnx", taken=[EMPTY[1]])])
    [gate] = result.failed_gates
    assert (gate.stage, gate.name, gate.measured) == ("triton", "adversarial", 1)
    assert "it answers a text that is empty ('  ')" in gate.sentence


def test_a_served_model_that_refuses_one_text_fails_on_that_text(bundle: Path, short: Path) -> None:
    served = Counter(bundle / "model.onnx", ends=InputError("it takes no such text", "triton", "fix it"))
    result = parity(bundle, short, extra_stages=[served])
    [gate] = result.failed_gates
    assert gate.stage == "triton"
    assert gate.sentence.startswith("1 of ")
    assert "the kind emoji" in gate.sentence
    assert "it takes no such text" in gate.sentence


def test_a_server_that_dies_of_a_text_fails_and_the_report_is_written(bundle: Path, short: Path) -> None:
    ends = StageInterrupted("the server stopped answering", "triton", "start it again")
    result = parity(bundle, short, extra_stages=[Counter(bundle / "model.onnx", ends=ends)])
    [gate] = result.failed_gates
    assert (gate.stage, gate.passed) == ("triton", False)
    assert "it stopped answering" in gate.sentence
    assert (result.folder / "report.json").is_file()


def test_the_reader_refuses_empty_texts(bundle: Path, tmp_path: Path) -> None:
    assert reader_refuses_empty()
    for text in EMPTY:
        (tmp_path / "data.jsonl").write_text(json.dumps({"text": text}) + "\n")
        with pytest.raises(InputError, match="no text"):
            parity(bundle, tmp_path / "data.jsonl")


def test_a_served_model_of_other_answers_is_found_on_odd_texts(bundle: Path, short: Path) -> None:
    class Odd(Served):
        def run(self, inputs: ParityInputs, advance: Callable[[int], None]) -> StageOutput | Skipped:
            found = super().run(inputs, advance)
            assert isinstance(found, StageOutput)
            assert found.answers is not None
            other = [len(LABELS) - 1 if "\u05de" in text else -1 for text in inputs.texts]
            answers = np.where(np.array(other) >= 0, (found.answers + 1) % len(LABELS), found.answers)
            return replace(found, answers=answers)

    result = parity(bundle, short, extra_stages=[Odd(bundle / "model.onnx")])
    [gate] = result.failed_gates
    assert "the kind right-to-left" in gate.sentence
    assert "labels that changed" in gate.sentence
