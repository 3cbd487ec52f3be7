"""
An engine over Azure Blob Storage: obstore for objects, signed requests of our own for lists.
"""

from __future__ import annotations

from base64 import b64encode

from obstore.store import AzureStore

from ..storage.interface import WantedPart
from .azure import AzureLists
from .azure_requests import AzureRequests
from .azure_settings import CA_VARIABLE, AzureSettings, find_azure_settings
from .engine import WHOLE, BeyondTheEnd, Body
from .location import Location
from .obstore_engine import NO_RETRIES, ObstoreEngine, client_options


class AzureEngine(ObstoreEngine):
    """See L{resticserver.objects.engine.Engine}."""

    def get(self, key: str, wanted: WantedPart = WHOLE) -> Body:
        """See L{resticserver.objects.engine.Engine.get}."""
        # Azure cannot be asked for the last bytes of an object of unknown size.
        if wanted.suffix:
            size_bytes = self.size_of(key)
            if not size_bytes:
                raise BeyondTheEnd()
            wanted = WantedPart(max(0, size_bytes - wanted.suffix), size_bytes)
        return super().get(key, wanted)


def make_azure_engine(location: Location) -> AzureEngine:
    """
    Make the engine of a container. Account, endpoint and credentials come from the environment; nothing is sent to the engine.

    @raise StartError: what is configured is missing or wrong.
    """
    settings = find_azure_settings(location)
    lists = AzureLists(AzureRequests(settings, location.bucket))
    return AzureEngine(
        str(location), settings.endpoint, _client(location, settings, True), _client(location, settings, False), lists
    )


def _client(location: Location, settings: AzureSettings, writes: bool) -> AzureStore:
    credentials: dict[str, str] = {"credential_type": "access_key"}
    if settings.sas:
        credentials = {"credential_type": "sas_token", "sas_key": settings.sas}
    else:
        credentials["account_key"] = b64encode(settings.key).decode("ascii")
    return AzureStore(
        location.bucket,
        account_name=settings.account,
        endpoint=settings.endpoint,
        client_options=client_options(settings.endpoint, writes, settings.ca_file, CA_VARIABLE),
        retry_config=NO_RETRIES,
        # Nothing else in the environment may change what is sent.
        skip_signature=False,
        use_emulator=False,
        use_fabric_endpoint=False,
        use_azure_cli=False,
        **credentials,  # type: ignore[arg-type]
    )
