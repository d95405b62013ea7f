"""Settings of Beaker that its client takes without a word, and that are not what they seem."""

from __future__ import annotations

import os
import urllib.parse
from pathlib import Path

from launcher.errors import ClusterError
from worker.errors import printable

RPC = "beaker.org:443"
"""Where a client that knows nothing else asks."""


def check_file() -> None:
    """ClusterError: a file that is not there is no file to the client."""
    path = os.environ.get("BEAKER_CONFIG", "")
    if path and not Path(path).is_file():
        raise ClusterError(f"beaker: BEAKER_CONFIG names {printable(path)}, which is not there")


def check_addresses(rpc: str) -> None:
    """ClusterError: the variable changes the web's address only, so two servers would be asked."""
    address = os.environ.get("BEAKER_ADDR", "")
    host = urllib.parse.urlparse(address).hostname
    if address and rpc == RPC and host != RPC.partition(":")[0]:
        raise ClusterError(
            f"beaker: BEAKER_ADDR is {printable(address)}, but questions would still go to {RPC}; "
            f"set rpc_address too, in the config file ($BEAKER_CONFIG or ~/.beaker/config.yml)"
        )
