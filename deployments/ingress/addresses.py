"""From which address does a request come?

From that of whoever connected, unless that is a proxy that the configuration trusts to say for whom it did. Each proxy
adds the address that it was connected from, so of a list the last entry that is not a trusted proxy is the client's;
what stands before it is what the client claims.

Serve's own proxy always stands between, and adds nothing by itself. Where this service has set it up, it says in
`peer_header` who connected to it, whatever the client may have sent under that name; see `deployments.fast_http`.
"""

from __future__ import annotations

import ipaddress

from fastapi import Request

from configs.service import HttpConfig

#: More proxies than stand in front of anything. What comes before is not looked at.
ENTRIES_MAX = 32


class ClientAddresses:
    """
    Args:
        http: names the trusted proxies, and the header that they write.
        peer_header: the one that Serve's own proxy writes; None where it writes none.
    """

    def __init__(self, http: HttpConfig, peer_header: str | None) -> None:
        self._header = http.client_ip_header
        self._trusted = [ipaddress.ip_network(network) for network in http.trusted_proxies]
        self._peer_header = peer_header

    def of(self, request: Request) -> str:
        address = request.client.host if request.client else ""
        if self._peer_header is not None:
            address = request.headers.get(self._peer_header, address)
        if self._header is None or not self._is_trusted(address):
            return address
        # Many a proxy adds a line of its own to what the client claims, and others add to the client's line.
        entries = ",".join(request.headers.getlist(self._header)).rsplit(",", ENTRIES_MAX)[-ENTRIES_MAX:]
        for entry in reversed(entries):
            if found := _without_port(entry.strip()):
                address = found
                if not self._is_trusted(address):
                    break
        return address

    def _is_trusted(self, address: str) -> bool:
        try:
            found = ipaddress.ip_address(address)
        except ValueError:
            return False
        if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped:
            found = found.ipv4_mapped
        return any(found in network for network in self._trusted)


def _without_port(entry: str) -> str:
    """`192.0.2.1:4711` and `[2001:db8::1]:4711`, as some proxies write it."""
    if entry.startswith("["):
        return entry[1:].partition("]")[0]
    host, colon, port = entry.partition(":")
    return host if colon and port.isdigit() else entry
