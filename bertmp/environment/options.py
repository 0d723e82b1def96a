"""The options of `setup` and `download`."""

from __future__ import annotations

from collections.abc import Sequence

from bertmp.core.errors import InputError
from bertmp.core.options import Options, argument, option
from bertmp.core.progress import ProgressCallback, null_progress

ASSET_NAMES = ("minilm", "trec", "sms-spam", "moviedialog")


class _TransferOptions(Options):
    """What both take."""

    progress: ProgressCallback = option(
        default=null_progress, on_command_line=False, help="Called with the state of each transfer."
    )


class SetupOptions(_TransferOptions):
    """What `setup` installs."""

    component: str = argument(
        kw_only=False, default="triton", choices=("triton",), help="What to install; there is only triton."
    )


class DownloadOptions(_TransferOptions):
    """What `download` fetches."""

    names: Sequence[str] = argument(
        kw_only=False, metavar="NAME", choices=ASSET_NAMES, help=f"{', '.join(ASSET_NAMES)}."
    )

    def check(self) -> None:
        if not self.names:
            raise InputError("nothing named to download", "", f"name one or more of {', '.join(ASSET_NAMES)}")
