"""Models on a hub, through huggingface_hub: what is fetched for `pack` and `pull`, what `push` sends.

Its settings count: HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_OFFLINE.
"""

from spqfmt.hub.fetch import fetch_packed, fetch_source
from spqfmt.hub.names import HubName, hub_name, not_a_path
from spqfmt.hub.send import Sent, card_there, send

__all__ = ["HubName", "Sent", "card_there", "fetch_packed", "fetch_source", "hub_name", "not_a_path", "send"]
