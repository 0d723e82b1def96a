"""The options of `setup` and `download`."""

from __future__ import annotations

from collections.abc import Sequence

from bertmp.core.errors import InputError
from bertmp.core.options import Options, argument, option
from bertmp.core.progress import ProgressCallback, null_progress

ASSET_NAMES = ("minilm", "trec", "sms-spam", "moviedialog")


class SetupOptions(Options):
    """What `setup` installs."""

    component: str = argument(
        kw_only=False, default="triton", choices=("triton",), help="What to install; there is only triton."
    )
    progress: ProgressCallback = option(
        default=null_progress, on_command_line=False, help="Called with the state of each transfer."
    )


class DownloadOptions(Options):
    """What `download` fetches."""

    names: Sequence[str] = argument(
        kw_only=False, metavar="NAME", choices=ASSET_NAMES, help=f"{', '.join(ASSET_NAMES)}."
    )
    progress: ProgressCallback = option(
        default=null_progress, on_command_line=False, help="Called with the state of each transfer."
    )

    def check(self) -> None:
        if not self.names:
            raise InputError("nothing named to download", "", f"name one or more of {', '.join(ASSET_NAMES)}")
