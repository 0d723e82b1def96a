"""The options of `parity`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bertmp.core.errors import InputError
from bertmp.core.options import argument, option
from bertmp.core.progress import ProgressCallback, null_progress
from bertmp.data.data_options import DataOptions

if TYPE_CHECKING:
    from bertmp.export.parity.stage import Stage


class ComparisonOptions(DataOptions):
    """Which bundle is compared, and within which limits."""

    # fmt: off
    bundle: Path = argument(kw_only=False, metavar="BUNDLE", help="The bundle's folder.")
    gates: Mapping[str, object] | Path | str | None = option(
        default=None, metavar="FILE",
        help="Limits in TOML, one table per stage: max_error = 0.01 below the line [onnx-fp16]; default: the "
        "built-in limits. Python callers may pass a mapping from stage to Limits.",
    )
    report: Path | None = option(
        default=None, metavar="DIR", help="Folder of the report; default: BUNDLE/parity.",
    )
    checkpoint: Path | None = option(
        default=None, metavar="DIR",
        help="The FP32 checkpoint, where it is not in the folder that it was exported from.",
    )
    require: Sequence[str] = option(
        default=(), metavar="STAGE",
        help="A stage that must run, such as engine or triton; the verdict is incomplete without it.",
    )
    allow_incomplete: Sequence[str] = option(
        default=(), metavar="STAGE", help="A stage that the verdict does not wait for; it is recorded.",
    )
    seed: int = option(
        default=0, minimum=0, maximum=2**32 - 1,
        help="What the adversarial inputs are drawn with: the same seed makes the same inputs.",
    )
    sign: Path | None = option(
        default=None, metavar="KEY",
        help="Sign the bundle and its certificate with this private key (PEM; elliptic curve P-256, P-384 or "
        "P-521), unless the verdict is failed. BERTMP_SIGN_PASSWORD has the password of an encrypted key.",
    )
    # fmt: on
    extra_stages: Sequence[Stage] = option(
        default=(), on_command_line=False, help="Served models, compared after the bundle's own stages."
    )
    progress: ProgressCallback = option(
        default=null_progress, on_command_line=False, help="Called with how far each stage is."
    )


class ParityOptions(ComparisonOptions):
    """A bundle is compared on the examples of a data file."""

    data: Path = option(kw_only=False, metavar="FILE", help="Labelled or unlabelled examples.")


class ReplayOptions(ComparisonOptions):
    """A bundle is compared on the inputs that it had failed on."""

    replay: Path = option(
        kw_only=False,
        metavar="FILE",
        help="In place of --data, the failing-inputs.json of a report: those inputs alone are asked again; "
        "neither the manifest nor the certificate changes.",
    )

    def check(self) -> None:
        super().check()
        of_a_verdict = {
            "--require": self.require,
            "--allow-incomplete": self.allow_incomplete,
            "--seed": self.seed,
            "--sign": self.sign,
        }
        for flag, given in of_a_verdict.items():
            if given:
                raise InputError(f"{flag} with --replay", flag, "leave it out: a replay is no verdict")
