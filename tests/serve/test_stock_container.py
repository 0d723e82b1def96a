"""The text model where nothing of ours is installed, as in the stock Triton container with a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

from bertmp import infer
from bertmp.core.io import write_text
from tests.serve.bundles import deploy
from tests.serve.conftest import Served

SCRIPT = """
import importlib, json, sys
import numpy as np
import triton_python_backend_utils as pb_utils

repository, texts = sys.argv[1], json.loads(sys.argv[2])
sys.path.append(f"{repository}/trec")
model = importlib.import_module("1.model")  # as Triton imports it

pb_utils.ENCODERS["trec_encoder"] = lambda inputs: {
    "logits": np.eye(6, dtype=np.float32)[inputs["attention_mask"].sum(axis=1) % 6]
}
serving = {"length_step": 16, "graph": "model.onnx", "threads": 1}  # the graph is there, ONNX Runtime is not
config = {"parameters": {"serving": {"string_value": json.dumps(serving)}}}
served = model.TritonPythonModel()
where = {"model_name": "trec", "model_repository": f"{repository}/trec", "model_version": "1"}
served.initialize({**where, "model_config": json.dumps(config)})
rows = np.array([text.encode() for text in texts], dtype=object).reshape(-1, 1)
outputs = ["LABEL", "PROBABILITIES", "TRUNCATED", "TOKENS", "FILES"]
request = pb_utils.InferenceRequest(requested_output_names=outputs, inputs=[pb_utils.Tensor("TEXT", rows)])
(response,) = served.execute([request])
found = {tensor.name(): tensor.as_numpy().reshape(-1) for tensor in response.output_tensors()}
imported = sorted({name.split(".")[0] for name in sys.modules})
def asking(text):
    row = np.array([[text.encode()]], dtype=object)
    return pb_utils.InferenceRequest(requested_output_names=["TOKENS"], inputs=[pb_utils.Tensor("TEXT", row)])


several = [asking(text) for text in (texts[1] * 3, texts[0], " ", texts[0] + " there")]
returned = served.execute(several)
early = [one is None and request.sender.sent[0] for one, request in zip(returned, several)]
answers = [sent or one for sent, one in zip(early, returned)]
counts = [None if one.has_error() else int(one.output_tensors()[0].as_numpy()[0, 0]) for one in answers]
labels = [label.decode() for label in found["LABEL"]]
together = [[bool(one) for one in early], counts]
print(json.dumps([labels, found["TOKENS"].tolist(), imported, pb_utils.Logger.LINES, together]))
"""


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all the packages that the container's Python has: numpy, and Triton's module."""
    folder = tmp_path_factory.mktemp("bare")
    package = Path(numpy.__file__).parent
    for source in (package, package.with_name("numpy.libs")):
        if source.is_dir():
            (folder / source.name).symlink_to(source)
    standin = Path(__file__).with_name("pb_utils_standin.py").read_text(encoding="utf-8")
    write_text(folder / "triton_python_backend_utils.py", standin)
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="tokenizers are put beside the model for Linux")
def test_text_model_runs_with_numpy_alone_and_the_encoders_output_on_the_gpu(
    bundle: Path, bare_python: Path, tmp_path: Path
) -> None:
    deploy(bundle, "trec", tmp_path / "repository")
    texts = ["Who ?", "Where is it , and why there ?"]
    code = f"import sys; sys.path[:] = [{str(bare_python)!r}, *sys.path]\n{SCRIPT}"
    command = [sys.executable, "-I", "-S", "-c", code, str(tmp_path / "repository"), json.dumps(texts)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    labels, tokens, imported, logged, together = json.loads(done.stdout)
    # The one long text is another run, which the short ones do not wait for.
    assert together == [[False, True, False, True], [26, 4, None, 5]]
    assert logged == ["trec_encoder is called: No module named 'onnxruntime'"]
    assert tokens == [4, 10]
    names = (bundle / "labels.txt").read_text(encoding="utf-8").splitlines()
    assert labels == [names[count % 6] for count in tokens]
    assert not {"bertmp", "torch", "huggingface_hub"} & set(imported)


def test_real_server_answers_with_the_preferred_memory(served: Served) -> None:
    assert infer("trec", ["Who ?"], url=served.url("grpc"))[0].label
