"""Exits with 0 where every deployed model answers its golden request, else with 1 and the reason.

A probe for containers, of the standard library alone. Triton's own /v2/health/ready says that models are
loaded, and says so of a model whose worker has died, too. `bertmp deploy` puts golden.json, a request and its
answer, into each version.

    python3 golden_request.py --repository /models [--url http://127.0.0.1:8000] [--timeout 4]
"""

import argparse
import json
import sys
import urllib.request
from pathlib import Path

SHARE = 0.05
"""How far a number may be off, as a share of the answer's largest, where the request names no bound."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--timeout", type=float, default=4.0)
    options = parser.parse_args()
    cases = list(golden_cases(options.repository))
    if not cases:
        print(f"no version with a golden.json in {options.repository}", file=sys.stderr)
        return 1
    for case in cases:
        try:
            fault = ask(case, options.url, options.timeout)
        except (OSError, ValueError, KeyError) as error:
            fault = str(error) or type(error).__name__
        if fault:
            print(f"{case['model']}: {fault}", file=sys.stderr)
            return 1
    return 0


def golden_cases(repository):
    """Those of the newest version of each model."""
    for model in sorted(path for path in repository.iterdir() if path.is_dir()):
        versions = [int(path.name) for path in model.iterdir() if path.name.isdecimal()]
        golden = model / str(max(versions, default=0)) / "golden.json"
        if golden.is_file():
            yield from json.loads(golden.read_text(encoding="utf-8"))["cases"]


def ask(case, url, timeout):
    """What is wrong with the answer; empty where it is right."""
    expected = case["outputs"]
    names = [tensor["name"] for tensor in expected] or case.get("wanted", [])
    body = {"inputs": case["inputs"], "outputs": [{"name": name} for name in names]}
    request = urllib.request.Request(
        f"{url}/v2/models/{case['model']}/infer",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=timeout) as reply:
        answered = {tensor["name"]: tensor for tensor in json.load(reply)["outputs"]}
    for tensor in expected:
        if not agrees(tensor, answered[tensor["name"]]):
            return f"another answer in {tensor['name']}"
    return ""


def agrees(expected, found):
    if expected["shape"] != found["shape"]:
        return False
    largest = max((abs(value) for value in expected["data"] if isinstance(value, float)), default=0.0)
    bound = expected.get("bound") or SHARE * max(largest, 0.0625)
    return all(
        abs(one - other) <= bound if isinstance(one, float) else one == other  # NaN is not within any bound
        for one, other in zip(expected["data"], found["data"], strict=True)
    )


if __name__ == "__main__":
    sys.exit(main())
